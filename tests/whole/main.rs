//! The whole: the real binary against a real API server and real sshds, with a stand-in for AWS.
//!
//! ```text
//! kubectl as alice ─▶ kube-apiserver ◀─ instance-access controller ─▶ AWS stand-in ◀─ sshd ◀─ ssh as alice
//!                          └─▶ History: every version of every request   └─▶ journal: every call
//! ```
//! Grants last two minutes at least, and most of a test is waiting for the end: all tests run at once, whatever the
//! number of cores. Those that only look share one lab; those that kill the controller share another and take turns.
//! Every test ends with the promises that hold for any request (`Request::keeps_its_promises`).
//!
//! With `INSTANCE_ACCESS_WHOLE_DIR` set, logs and audit trails stay there.

#[macro_use]
#[path = "../common/trials.rs"]
mod trials;

mod approve;
mod cli;
mod controller;
mod delegates;
mod enforcement;
mod gitops;
mod history;
mod instance;
mod ledger;
mod limits;
mod login;
mod outage;
mod policy;
mod refused;
mod request;
mod restart;
mod revoke;
mod stand;
#[allow(dead_code, reason = "shared with the tests of the gateway, which use all of it")]
mod tunnel;

use libtest_mimic::Arguments;

fn main() -> std::process::ExitCode {
    // The tests' own Kubernetes client speaks TLS; two crates would otherwise each pick a provider.
    rustls::crypto::aws_lc_rs::default_provider().install_default().expect("nothing was installed before");
    lab::pace::begin();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let trials = trials! { runtime:
        login {
            a_request_lets_its_owner_in_until_it_ends_and_no_longer,
            a_session_that_is_open_at_the_end_lives_on_and_status_says_so,
            two_grants_on_one_instance_do_not_disturb_each_other,
            the_owner_of_a_private_instance_is_told_the_tunnel_to_it,
            a_private_instance_is_served_directly_to_whoever_asks_for_that,
            a_start_time_to_come_is_waited_for,
            an_end_time_cuts_the_grant_short,
            an_end_time_that_leaves_no_time_ends_the_request_without_a_push,
        }
        revoke {
            a_revoked_grant_is_pushed_no_more_and_ends_once_the_last_key_has_faded,
            a_deleted_request_stays_until_its_last_key_has_faded,
            what_was_never_granted_is_deleted_at_once,
            a_request_revoked_before_its_grant_never_has_one,
            a_revocation_can_neither_be_taken_back_nor_forgotten_by_an_apply,
            a_request_made_again_under_its_old_name_with_another_spec_is_a_request_of_its_own,
            a_spec_cannot_be_edited_and_a_re_applied_one_is_not_granted_again,
        }
        ledger {
            a_request_that_comes_back_as_it_was_is_granted_no_second_time_whatever_way_it_came,
            a_service_account_that_deletes_and_applies_again_and_again_gets_one_grant,
        }
        gitops {
            a_request_that_git_makes_anew_after_its_end_time_is_over_at_once_and_never_pushed,
        }
        delegates {
            alice_gets_in_by_a_request_from_git_until_its_end_time_and_never_by_the_same_again,
            who_asks_for_others_gets_nobody_in_beyond_what_a_policy_and_people_say,
        }
        policy {
            a_policy_edited_so_that_it_no_longer_admits_a_grant_ends_it,
            a_deleted_policy_ends_its_grants,
            a_deny_that_is_added_ends_what_it_matches,
            an_edit_that_still_admits_a_grant_leaves_it_alone,
            a_broken_pattern_is_told_by_its_policy_and_the_others_go_on,
            a_window_and_a_condition_refuse_then_admit_and_the_window_ends_the_grant,
        }
        approve {
            a_colleague_approves_by_the_pages_command_and_may_end_it_by_another_decision,
            a_yes_from_before_the_request_counts_for_nothing,
            a_no_is_final,
            nothing_but_two_others_words_on_this_very_request_lets_alice_in,
            a_flood_of_junk_is_neither_kept_nor_in_anybodys_way,
        }
        limits {
            of_hundreds_at_once_as_many_as_the_limit_are_granted_also_through_a_kill,
        }
        instance {
            a_stopped_instance_is_told_and_served_again_once_it_runs,
            a_terminated_instance_stalls_the_grant_until_it_ends,
            a_retagged_instance_that_the_policy_no_longer_covers_is_closed,
            a_request_for_a_stopped_instance_waits_for_it,
            tags_that_match_one_instance_lead_to_it,
            a_node_leads_to_its_instance_and_its_end_ends_the_grant,
        }
        tunnel {
            the_command_for_a_private_instance_leads_in_through_the_endpoint_by_awss_own_client,
        }
        restart {
            killed_between_the_record_and_the_status_of_a_grant_it_grants_once,
            killed_between_the_status_and_the_push_it_pushes,
            killed_between_the_push_and_its_answer_it_grants_on,
            killed_while_granted_it_pushes_on_and_says_nothing_new,
            killed_while_a_revocation_is_pending_it_pushes_no_more_and_ends,
            killed_between_the_entry_of_a_deleted_request_and_its_release_it_lets_it_go_and_grants_no_second,
            told_to_stop_it_waits_for_no_look_up_that_hangs_and_pushes_nothing_more,
        }
        outage {
            an_api_server_that_hangs_holds_up_neither_the_end_nor_a_shutdown,
            an_end_is_recorded_on_time_while_the_api_server_is_away_and_told_once_it_is_back,
            killed_between_the_record_and_the_status_of_an_end_it_ends_the_grant_all_the_same,
            two_labs_at_once_do_not_disturb_each_other,
        }
        enforcement {
            a_requester_forged_while_nothing_checks_is_served_neither_then_nor_later,
            whatever_is_bent_is_noticed_and_named_and_the_grant_ends_on_time,
            a_grant_that_somebody_writes_into_status_lets_nobody_in,
        }
        cli {
            help_says_what_there_is_and_where_settings_come_from,
            a_mistake_on_the_command_line_names_its_remedy,
            what_is_printed_for_kubectl_is_all_there,
        }
        refused {
            a_refusal_names_what_was_wrong_and_what_would_be_right,
            a_target_that_is_not_there_is_waited_for_and_a_wrong_one_stalls,
            what_can_be_seen_at_the_door_is_refused_there,
            a_status_that_an_administrator_forges_is_refused,
        }
    };
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(trials.len());
    let conclusion = libtest_mimic::run(&arguments, trials);
    runtime.block_on(stand::end());
    conclusion.exit_code()
}
