//! The gateway: the real binary as a jump host for stock OpenSSH, before real sshds and a real API server.
//!
//! ```text
//! ssh as alice ─▶ instance-access gateway ─▶ sshd        kubectl as alice ─▶ kube-apiserver ◀─ controller
//!                          └── watch ───────────────────────────────────────────┘
//! ```
//! All tests run at once: a grant lasts two minutes at least, and most of a test of its end is waiting for that. Those that
//! stop the API server, or kill the controller, have a stand of their own.
//!
//! With `INSTANCE_ACCESS_WHOLE_DIR` set, logs and audit trails stay there.

#[macro_use]
#[path = "../common/trials.rs"]
mod trials;

#[path = "../whole/controller.rs"]
#[allow(dead_code, reason = "shared with the tests of the whole, which use all of it")]
mod controller;
#[path = "../whole/history.rs"]
#[allow(dead_code, reason = "shared with the tests of the whole, which use all of it")]
mod history;
#[path = "../whole/request.rs"]
#[allow(dead_code, reason = "shared with the tests of the whole, which use all of it")]
mod request;
#[path = "../whole/stand.rs"]
#[allow(dead_code, reason = "shared with the tests of the whole, which use all of it")]
mod stand;
#[path = "../whole/tunnel.rs"]
#[allow(dead_code, reason = "shared with the tests of the whole, which use all of it")]
mod tunnel;

mod client;
mod clients;
mod endpoint;
mod ends;
mod jump;
mod limits;
mod refused;
mod strangers;

use libtest_mimic::Arguments;

fn main() -> std::process::ExitCode {
    // The tests' own Kubernetes client speaks TLS; two crates would otherwise each pick a provider.
    rustls::crypto::aws_lc_rs::default_provider().install_default().expect("nothing was installed before");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let trials = trials! { runtime:
        clients {
            ssh_leads_in_by_every_name_of_the_instance_and_leaves_a_record,
            scp_and_sftp_carry_files_whole_both_ways,
            a_master_connection_carries_sessions_to_several_instances,
            an_agent_with_twenty_keys_is_let_in_by_the_last_of_them,
            an_rsa_key_is_let_in,
        }
        endpoint {
            ssh_and_scp_lead_through_the_endpoint_and_leave_nothing_open,
            a_session_through_the_endpoint_is_cut_at_the_end_of_its_grant_and_told_why,
            a_session_through_the_endpoint_is_cut_when_its_grant_is_revoked,
            an_endpoint_proves_its_name,
            an_endpoints_connections_are_shared_out_and_what_aws_refuses_is_told,
            without_the_gateway_a_tunnel_ends_all_the_same,
            a_gateway_without_endpoints_says_the_way_that_there_is,
            a_private_address_is_dialled_first_where_it_means_the_instance,
        }
        ends {
            a_session_is_cut_at_the_end_of_its_grant_and_told_why,
            a_session_is_cut_when_its_grant_is_revoked,
            a_session_is_cut_when_its_request_is_deleted,
            a_session_is_cut_when_its_policy_goes_and_others_go_on,
            a_client_that_stands_still_is_cut_all_the_same,
            a_session_with_an_instance_that_stands_still_is_cut_all_the_same,
            without_api_server_and_controller_nobody_new_comes_in_and_the_end_comes_on_time,
        }
        refused {
            nothing_is_reached_but_the_grants_own_instance_and_port,
            whoever_tries_doors_is_shown_out,
            a_jump_host_is_no_shell_and_forwards_nothing_else,
            a_key_without_a_live_grant_is_not_let_in,
            without_a_record_no_session,
        }
        limits {
            a_gateway_that_stops_lets_sessions_go_on_for_a_while_and_then_cuts_them,
            one_key_has_so_many_connections_and_one_grant_so_many_sessions,
            whoever_does_not_log_in_takes_few_places_and_not_for_long,
        }
        strangers {
            whatever_a_stranger_sends_others_are_served,
        }
    };
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(trials.len());
    let conclusion = libtest_mimic::run(&arguments, trials);
    runtime.block_on(jump::end());
    runtime.block_on(stand::end());
    conclusion.exit_code()
}
