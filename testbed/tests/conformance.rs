//! The conformance suite: every scenario, in every form, on the model, on the model in QEMU's place
//! (over the qtest protocol, by the client that QEMU is driven with), and on QEMU. Tables have 4
//! levels; besides, every scenario runs with 3 on the model and on QEMU, and with 5 on the model, for
//! which QEMU has no unit.

use portcullis_models::mutation::Mutations;
use portcullis_testbed::rig::{Form, ModelRig, Shape, on_full_qemu, on_model, on_qemu, on_qtest_model, play};
use portcullis_testbed::scenarios;
use portcullis_testbed::stage::Stage;

/// A test for each rig and form of each scenario.
macro_rules! conformance {
    ($($scenario:ident: $($form:ident)+;)+) => {
        $(mod $scenario { $(conformance!(@form $scenario $form);)+ })+
    };
    (@form $scenario:ident legacy) => {
        conformance!(@test $scenario legacy Legacy);
        conformance!(@levels $scenario legacy_3_levels Legacy 3 qemu);
        conformance!(@levels $scenario legacy_5_levels Legacy 5);
    };
    (@form $scenario:ident second_stage) => {
        conformance!(@test $scenario second_stage ScalableSecond);
        conformance!(@levels $scenario second_stage_3_levels ScalableSecond 3 qemu);
        conformance!(@levels $scenario second_stage_5_levels ScalableSecond 5);
    };
    (@form $scenario:ident first_stage) => {
        conformance!(@test $scenario first_stage ScalableFirst);
        conformance!(@levels $scenario first_stage_5_levels ScalableFirst 5);
    };
    (@form $scenario:ident first_stage_with_all) => {
        mod first_stage_with_all {
            use super::super::*;

            #[test]
            fn qemu() {
                let name = concat!(stringify!($scenario), "::first_stage_with_all::qemu");
                on_full_qemu(name, scenarios::$scenario);
            }
        }
    };
    (@levels $scenario:ident $name:ident $form:ident $levels:literal $($qemu:ident)?) => {
        mod $name {
            use super::super::*;

            const SHAPE: Shape = Shape { form: Form::$form, levels: $levels };

            #[test]
            fn model() {
                on_model(SHAPE, scenarios::$scenario);
            }

            $(#[test]
            fn $qemu() {
                let name = concat!(stringify!($scenario), "::", stringify!($name), "::qemu");
                on_qemu(name, SHAPE, scenarios::$scenario);
            })?
        }
    };
    (@test $scenario:ident $name:ident $form:ident) => {
        mod $name {
            use super::super::*;

            #[test]
            fn model() {
                on_model(Form::$form, scenarios::$scenario);
            }

            #[test]
            fn model_over_qtest() {
                on_qtest_model(Form::$form, scenarios::$scenario);
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
    scattered_pages: legacy second_stage first_stage first_stage_with_all;
    large_transfers: legacy second_stage first_stage first_stage_with_all;
    a_read_only_page: legacy second_stage first_stage first_stage_with_all;
    large_pages: legacy second_stage first_stage first_stage_with_all;
    huge_pages: legacy second_stage first_stage first_stage_with_all;
    dirty_pages: legacy second_stage first_stage first_stage_with_all;
    identity: legacy second_stage first_stage first_stage_with_all;
    blocked_until_attached: legacy second_stage first_stage first_stage_with_all;
    detached: legacy second_stage first_stage first_stage_with_all;
    domain_switch: legacy second_stage first_stage first_stage_with_all;
    switch_to_identity: legacy second_stage first_stage first_stage_with_all;
    switch_to_nothing: legacy second_stage first_stage first_stage_with_all;
    two_devices_two_domains: legacy second_stage first_stage first_stage_with_all;
    one_domain_for_two: legacy second_stage first_stage first_stage_with_all;
    direct_region: legacy second_stage first_stage first_stage_with_all;
    reset: legacy second_stage first_stage first_stage_with_all;
    unknown_device: legacy second_stage first_stage first_stage_with_all;
    unmapped: legacy second_stage first_stage first_stage_with_all;
    too_wide: legacy second_stage first_stage first_stage_with_all;
    faults_of_two_devices: legacy second_stage first_stage first_stage_with_all;
    stale_until_synced: legacy second_stage first_stage first_stage_with_all;
    unmap_leaves_neighbours: legacy second_stage first_stage first_stage_with_all;
    large_page_becomes_small_ones: legacy second_stage first_stage first_stage_with_all;
    tables_are_freed_after_the_sync: legacy second_stage first_stage first_stage_with_all;
    the_queue_wraps: legacy second_stage first_stage first_stage_with_all;
    pasid_directories: second_stage first_stage first_stage_with_all;
    present_bit: second_stage first_stage first_stage_with_all;
    end_of_pass_through: second_stage first_stage first_stage_with_all;
    address_width_of_a_first_stage: first_stage first_stage_with_all;
}

/// Queue errors by hand, where hardware acts when a register is written. QEMU has no device that could
/// leave an invalidation of its own TLB without an answer, or answer one that nobody sent.
mod a_refused_descriptor {
    use super::*;

    const FORMS: [Form; 3] = [Form::Legacy, Form::ScalableSecond, Form::ScalableFirst];

    #[test]
    fn model_over_qtest() {
        FORMS.into_iter().for_each(|form| on_qtest_model(form, scenarios::a_refused_descriptor));
    }

    #[test]
    fn qemu() {
        FORMS
            .into_iter()
            .for_each(|form| on_qemu("a_refused_descriptor::qemu", form, scenarios::a_refused_descriptor));
    }
}

/// The suite has teeth: hardware that leaves out what it should do is found by what the device then
/// reaches.
mod a_broken_model {
    use super::*;

    fn fails(form: Form, mutations: Mutations, scenario: fn(&mut Stage<ModelRig>)) -> String {
        let run = std::panic::AssertUnwindSafe(|| play(form, 0, mutations, scenario));
        let panic = std::panic::catch_unwind(run).expect_err("the scenario passes");
        panic.downcast_ref::<String>().cloned().unwrap_or_default()
    }

    #[test]
    fn without_context_cache_invalidation() {
        let mutations = Mutations { ignore_context_invalidation: true, ..Mutations::default() };
        let said = fails(Form::Legacy, mutations, scenarios::detached);
        assert!(said.contains("was let through"), "{said}");
    }

    #[test]
    fn without_pasid_cache_invalidation() {
        let mutations = Mutations { ignore_pasid_invalidation: true, ..Mutations::default() };
        for form in [Form::ScalableSecond, Form::ScalableFirst] {
            let said = fails(form, mutations, scenarios::detached);
            assert!(said.contains("was let through"), "{said}");
        }
    }

    #[test]
    fn without_iotlb_invalidation() {
        let mutations = Mutations { ignore_iotlb_invalidation: true, ..Mutations::default() };
        for form in [Form::Legacy, Form::ScalableSecond, Form::ScalableFirst] {
            let said = fails(form, mutations, scenarios::unmap_leaves_neighbours);
            assert!(said.contains("was let through"), "{said}");
        }
    }

    #[test]
    fn with_a_walk_that_leads_to_the_input_address() {
        let mutations = Mutations { identity_walk: true, ..Mutations::default() };
        for form in [Form::Legacy, Form::ScalableSecond, Form::ScalableFirst] {
            let said = fails(form, mutations, scenarios::switch_to_identity);
            assert!(said.contains("isolation: memory at"), "{said}");
        }
    }
}
