//! conformance
use portcullis_testbed::rig::*;
use portcullis_testbed::scenarios::basic;
#[test]
fn q1() {
    on_qemu("q1", Form::Legacy, basic::probe)
}
#[test]
fn q2() {
    on_qemu("q2", Form::ScalableSecond, basic::probe)
}
#[test]
fn q3() {
    on_qemu("q3", Form::ScalableFirst, basic::probe)
}
#[test]
fn m1() {
    on_model(Form::Legacy, basic::probe)
}
#[test]
fn m2() {
    on_model(Form::ScalableSecond, basic::probe)
}
#[test]
fn m3() {
    on_model(Form::ScalableFirst, basic::probe)
}

#[test] fn q4() { on_qemu("q2", Form::ScalableSecond, basic::probe2) }
#[test] fn q5() { on_qemu("q2", Form::ScalableSecond, basic::probe3) }
