//! The conformance suite: every scenario, in every form, on the model and on QEMU.

use portcullis_testbed::rig::{Form, on_model, on_qemu};
use portcullis_testbed::scenarios;

/// A test for each rig and form of each scenario.
macro_rules! conformance {
    ($($scenario:ident: $($form:ident)+;)+) => {
        $(mod $scenario { $(conformance!(@form $scenario $form);)+ })+
    };
    (@form $scenario:ident legacy) => { conformance!(@test $scenario legacy Legacy); };
    (@form $scenario:ident second_stage) => { conformance!(@test $scenario second_stage ScalableSecond); };
    (@form $scenario:ident first_stage) => { conformance!(@test $scenario first_stage ScalableFirst); };
    (@test $scenario:ident $name:ident $form:ident) => {
        mod $name {
            use super::super::*;

            #[test]
            fn model() {
                on_model(Form::$form, scenarios::$scenario);
            }

            #[test]
            fn qemu() {
                let name = concat!(stringify!($scenario), "::", stringify!($name), "::qemu");
                on_qemu(name, Form::$form, scenarios::$scenario);
            }
        }
    };
}

conformance! {
    scattered_pages: legacy second_stage first_stage;
    large_transfers: legacy second_stage first_stage;
    a_read_only_page: legacy second_stage first_stage;
    large_pages: legacy second_stage first_stage;
    identity: legacy second_stage first_stage;
    blocked_until_attached: legacy second_stage first_stage;
    detached: legacy second_stage first_stage;
    domain_switch: legacy second_stage first_stage;
    switch_to_identity: legacy second_stage first_stage;
    switch_to_nothing: legacy second_stage first_stage;
    two_devices_two_domains: legacy second_stage first_stage;
    one_domain_for_two: legacy second_stage first_stage;
    unknown_device: legacy second_stage first_stage;
    unmapped: legacy second_stage first_stage;
    too_wide: legacy second_stage first_stage;
    faults_of_two_devices: legacy second_stage first_stage;
    stale_until_synced: legacy second_stage first_stage;
    unmap_leaves_neighbours: legacy second_stage first_stage;
    large_page_becomes_small_ones: legacy second_stage first_stage;
    tables_are_freed_after_the_sync: legacy second_stage first_stage;
    present_bit: second_stage first_stage;
    end_of_pass_through: second_stage first_stage;
    address_width_of_a_first_stage: first_stage;
}
