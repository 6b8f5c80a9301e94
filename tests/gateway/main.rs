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
#[path = "../common/monitoring.rs"]
mod monitoring;
#[path = "../whole/request.rs"]
#[allow(dead_code, reason = "shared with the tests of the whole, which use all of it")]
mod request;
#[path = "../whole/stand.rs"]
#[allow(dead_code, reason = "shared with the tests of the whole, which use all of it")]
mod stand;
#[path = "../whole/tunnel.rs"]
#[allow(dead_code, reason = "shared with the tests of the whole, which use all of it")]
mod tunnel;

#[path = "../common/collector.rs"]
#[allow(dead_code, reason = "shared with the tests of bad days, which use all of it")]
mod collector;
#[path = "../common/long_trail.rs"]
mod long_trail;

mod audit_files;
mod client;
mod clients;
mod endpoint;
mod ends;
mod host_keys;
mod jump;
mod leader;
mod limits;
mod metrics;
mod on_connect;
mod programs;
mod refused;
mod replicas;
mod rules;
mod sessions;
mod strangers;

use libtest_mimic::Arguments;

fn main() -> std::process::ExitCode {
    // The tests' own Kubernetes client speaks TLS; two crates would otherwise each pick a provider.
    rustls::crypto::aws_lc_rs::default_provider().install_default().expect("nothing was installed before");
    lab::pace::begin();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let trials = trials! { runtime:
        audit_files {
            a_full_file_is_closed_under_a_session_and_the_trail_goes_on_over_a_kill,
        }
        clients {
            ssh_leads_in_by_every_name_of_the_instance_and_leaves_a_record,
            a_node_leads_in_by_its_name,
            scp_and_sftp_carry_files_whole_both_ways,
            a_master_connection_carries_sessions_to_several_instances,
            an_agent_with_twenty_keys_is_let_in_by_the_last_of_them,
            an_rsa_key_is_let_in,
            an_agent_alone_leads_in_and_is_forwarded_to_the_instance_only,
            ipv6_leads_to_the_gateway_and_to_the_instance,
        }
        endpoint {
            ssh_and_scp_lead_through_the_endpoint_and_leave_nothing_open,
            a_session_through_the_endpoint_is_cut_at_the_end_of_its_grant_and_told_why,
            a_session_through_the_endpoint_is_cut_when_its_grant_is_revoked,
            with_the_gateway_alone_a_key_is_delivered_on_connect_through_the_endpoint_and_the_session_cut,
            an_endpoint_proves_its_name,
            an_endpoints_connections_are_shared_out_and_what_aws_refuses_is_told,
            without_the_gateway_a_tunnel_ends_all_the_same,
            a_gateway_without_endpoints_says_the_way_that_there_is,
            a_private_address_is_dialled_first_where_it_means_the_instance,
        }
        ends {
            a_session_is_cut_at_the_end_of_its_grant_and_told_why,
            a_session_is_cut_when_its_grant_is_revoked,
            while_the_key_of_a_login_that_was_taken_back_fades_its_owner_opens_no_other_there,
            a_session_is_cut_when_its_request_is_deleted,
            a_session_is_cut_when_its_policy_goes_and_others_go_on,
            a_client_that_stands_still_is_cut_all_the_same,
            a_session_with_an_instance_that_stands_still_is_cut_all_the_same,
            without_api_server_and_controller_nobody_new_comes_in_and_the_end_comes_on_time,
        }
        refused {
            nothing_is_reached_but_the_grants_own_instance_and_port,
            a_refusal_says_nothing_that_a_terminal_would_obey,
            whoever_tries_doors_is_shown_out,
            a_jump_host_is_no_shell_and_forwards_nothing_else,
            a_key_without_a_live_grant_is_not_let_in,
            without_a_record_no_session,
        }
        host_keys {
            a_host_key_is_rotated_and_no_client_is_asked_anything,
        }
        leader {
            a_gateway_pushes_while_a_controller_leads_and_no_longer_and_its_spans_say_what_it_did,
        }
        limits {
            a_gateway_that_stops_lets_sessions_go_on_for_a_while_and_then_cuts_them,
            one_key_has_so_many_connections_and_one_grant_so_many_sessions,
            one_source_has_so_many_connections_logged_in_or_not,
            whoever_does_not_log_in_takes_few_places_and_not_for_long,
        }
        on_connect {
            the_first_who_connects_has_the_key_delivered_and_the_next_rely_on_it,
            a_login_that_is_granted_while_another_ones_key_is_delivered_counts_for_the_session,
            in_the_last_minute_no_key_is_delivered_and_an_open_session_goes_on_to_its_end,
            what_aws_says_to_a_push_is_told_to_who_connects,
            a_gateway_without_aws_serves_whom_the_operator_delivers_to_and_tells_the_others,
        }
        metrics {
            what_the_alerts_and_the_dashboard_ask_for_is_served_and_names_nobody,
        }
        programs {
            rsync_carries_a_tree_there_and_back,
            git_clones_and_pushes,
            ansible_runs_its_modules,
            what_an_editors_remote_does_works_and_works_again_after_a_drop,
            through_an_endpoint_they_all_work_as_well,
        }
        replicas {
            several_gateways_behind_one_address_cut_alike_and_stand_in_for_one_another,
        }
        rules {
            an_idle_session_is_cut_and_one_with_a_keepalive_is_not,
            a_policy_that_is_edited_reaches_the_idle_session_of_a_live_grant,
            a_grant_has_as_many_sessions_as_its_policy_says,
            a_grant_that_drains_opens_no_session_and_ends_those_that_are_open_on_time,
            a_policy_that_demands_the_gateway_refuses_a_key_that_is_renewed_without_it,
            the_end_is_told_at_the_login_to_whoever_asks_ssh_to_be_verbose,
        }
        sessions {
            open_sessions_stand_in_status_within_seconds_and_the_end_of_the_last_too,
            fifty_sessions_at_once_are_few_writes,
            a_gateway_that_was_killed_sets_its_entry_right_when_it_is_back_and_one_that_stops_before_it_goes,
            a_gateway_has_the_rights_that_are_shipped_and_no_others,
        }
        strangers {
            whatever_a_stranger_sends_others_are_served,
        }
    };
    // Shown as ignored, not as passed: a machine without IPv6 shows nothing, and only root gives an endpoint a name.
    let has_ipv6 = std::net::TcpListener::bind((std::net::Ipv6Addr::LOCALHOST, 0)).is_ok();
    let has_names = runtime.block_on(tunnel::may_be_made());
    let is_shown = |name: &str| {
        (has_ipv6 || !name.contains("ipv6")) && (has_names || !name.contains("an_endpoint_proves_its_name"))
    };
    let trials: Vec<_> = trials
        .into_iter()
        .map(|trial| {
            let ignored = !is_shown(trial.name());
            trial.with_ignored_flag(ignored)
        })
        .collect();
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(trials.len());
    let conclusion = libtest_mimic::run(&arguments, trials);
    runtime.block_on(jump::end());
    runtime.block_on(stand::end());
    conclusion.exit_code()
}
