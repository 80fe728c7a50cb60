//! The contract, row by row, against a real nginx. `cargo test -p testkit --test contract -- --list`
//! is its table of contents; rows that an integration cannot have are in it with the reason.

use testkit::{Integration, Permit, permit, permit_alone, scenarios};

/// A row as a test of one integration. `[lua "reason"]`: the module alone cannot have it. `[native "reason"]`,
/// `[lua_alone "reason"]`: only that one can.
macro_rules! row {
    (Lua [native $reason:literal] $name:ident) => {
        row! { ignored $reason $name }
    };
    (Native [lua $reason:literal] $name:ident) => {
        row! { ignored $reason $name }
    };
    (Both [native $reason:literal] $name:ident) => {
        row! { ignored $reason $name }
    };
    (Both [lua_alone $reason:literal] $name:ident) => {
        row! { ignored $reason $name }
    };
    (Native [lua_alone $reason:literal] $name:ident) => {
        row! { ignored $reason $name }
    };
    (ignored $reason:literal $name:ident) => {
        #[test]
        #[ignore = $reason]
        fn $name() {
            unreachable!("ignored");
        }
    };
    ($integration:ident [$($only:ident $reason:literal)?] $name:ident) => {
        #[test]
        fn $name() {
            let _permit = permit_for(stringify!($name));
            super::$name(Integration::$integration);
        }
    };
}

/// Makes a test of each scenario for each integration.
macro_rules! contract {
    ($($name:ident $([$only:ident $reason:literal])? = $scenario:path;)*) => {
        $(
            fn $name(integration: Integration) {
                $scenario(integration);
            }
        )*
        mod lua {
            use super::*;
            $(row! { Lua [$($only $reason)?] $name })*
        }
        mod both {
            use super::*;
            $(row! { Both [$($only $reason)?] $name })*
        }
        mod native {
            use super::*;
            $(row! { Native [$($only $reason)?] $name })*
        }
    };
}

/// Row 29 has the kernel give out old process ids, also to servers of other tests, which tell processes apart by them.
fn permit_for(row: &str) -> Permit {
    if row.starts_with("row29_") { permit_alone() } else { permit() }
}

contract! {
    row01_cold_start = scenarios::start_stop::cold_start;
    row01_cold_start_in_the_foreground = scenarios::start_stop::cold_start_in_the_foreground;
    row02_reload = scenarios::reload::reload;
    row02_on_event_sees_all [lua "on_event is a callback"] = scenarios::reload::on_event_sees_all;
    row02_reload_right_after_a_death = scenarios::death::then_a_reload_and_the_stop;
    row02_nothing_of_the_old_configuration_is_used = scenarios::exits::nothing_of_the_old_configuration_is_used;
    row02a_draining_on_reload = scenarios::drain::on_reload;
    row02a_draining_on_quit = scenarios::drain::on_quit;
    row02a_draining_on_winch = scenarios::drain::on_winch;
    row02a_draining_until_the_shutdown_timeout = scenarios::drain::shutdown_timeout;
    row03_graceful_stop = scenarios::start_stop::graceful_stop;
    row03_graceful_stop_with_exit_worker [lua "nginx itself calls the module when a worker exits"] = scenarios::start_stop::graceful_stop_with_exit_worker;
    row04_fast_stop_by_term = scenarios::start_stop::fast_stop_by_term;
    row04_fast_stop_by_int = scenarios::start_stop::fast_stop_by_int;
    row04_fast_stop_with_exit_worker [lua "nginx itself calls the module when a worker exits"] = scenarios::start_stop::fast_stop_with_exit_worker;
    row04_fast_stop_under_a_request = scenarios::start_stop::fast_stop_under_a_request;
    row05_each_worker_dies_in_its_turn = scenarios::death::each_worker_in_turn;
    row05_segmentation_fault = scenarios::death::segmentation_fault;
    row05_exit_code = scenarios::death::exit_code;
    row06_respawn = scenarios::death::respawn;
    row07_every_worker_dies_at_once = scenarios::death::every_worker_at_once;
    row08_last_draining_worker_dies = scenarios::death::last_draining_worker;
    row09_failed_reload_then_a_stop = scenarios::failed_reload::then_a_stop_is_a_stop;
    row09_failed_reloads_then_a_reload = scenarios::failed_reload::then_a_reload_knows_who_serves;
    row09_failed_reload_on_a_taken_port = scenarios::failed_reload::a_port_that_is_taken;
    row09_failed_reload_then_a_death = scenarios::failed_reload::a_death_after_it;
    row09_configuration_that_is_none = scenarios::failed_reload::a_configuration_that_is_none;
    row09_start_that_fails = scenarios::failed_reload::a_start_that_fails;
    row09_init_code_that_fails [lua "init_by_lua is over before the module begins a generation"] = scenarios::failed_reload::init_code_that_fails;
    row10_configuration_test_leaves_no_trace = scenarios::start_stop::configuration_test;
    row10_signal_commands_leave_no_trace = scenarios::start_stop::signal_commands;
    row11_upgrade = scenarios::upgrade::taken_over;
    row11_upgrade_with_a_fast_end = scenarios::upgrade::taken_over_fast;
    row12_upgrade_rolled_back = scenarios::upgrade::rolled_back;
    row12_upgrade_rolled_back_by_hup = scenarios::upgrade::rolled_back_by_hup;
    row12_upgrade_whose_master_is_killed = scenarios::upgrade::new_master_killed;
    row13_old_master_stays = scenarios::upgrade::old_master_stays;
    row14_killed_master = scenarios::master::killed_master;
    row14_killed_master_of_two_generations = scenarios::master::killed_master_of_two_generations;
    row15_killed_node = scenarios::master::killed_node;
    row15_killed_node_of_two_generations = scenarios::master::killed_node_of_two_generations;
    row15_stopped_node_was_clean = scenarios::master::stopped_node;
    row16_death_in_worker_start [lua "callbacks are Lua's: the module writes lines, which neither fail nor take long"] = scenarios::retry::in_worker_start;
    row16_exit_in_worker_start [lua "callbacks are Lua's: the module writes lines, which neither fail nor take long"] = scenarios::retry::in_worker_start_by_exit;
    row16_death_in_generation_exit [lua "callbacks are Lua's: the module writes lines, which neither fail nor take long"] = scenarios::retry::in_generation_exit;
    row16_death_in_the_nodes_end [lua "callbacks are Lua's: the module writes lines, which neither fail nor take long"] = scenarios::retry::in_the_nodes_end;
    row16_death_in_worker_exit [lua "callbacks are Lua's: the module writes lines, which neither fail nor take long"] = scenarios::retry::in_worker_exit;
    row16_death_in_the_last_workers_exit [lua "callbacks are Lua's: the module writes lines, which neither fail nor take long"] = scenarios::retry::in_the_last_workers_exit;
    row16_death_in_worker_died [lua "callbacks are Lua's: the module writes lines, which neither fail nor take long"] = scenarios::retry::in_worker_died;
    row16_death_in_generation_start [lua "callbacks are Lua's: the module writes lines, which neither fail nor take long"] = scenarios::retry::in_generation_start;
    row17_error_in_worker_start [lua "callbacks are Lua's: the module writes lines, which neither fail nor take long"] = scenarios::callbacks::error_in_worker_start;
    row17_error_in_generation_start [lua "callbacks are Lua's: the module writes lines, which neither fail nor take long"] = scenarios::callbacks::error_in_generation_start;
    row17_error_in_worker_died [lua "callbacks are Lua's: the module writes lines, which neither fail nor take long"] = scenarios::callbacks::error_in_worker_died;
    row17_error_in_exits [lua "callbacks are Lua's: the module writes lines, which neither fail nor take long"] = scenarios::callbacks::error_in_exits;
    row17_exit_in_worker_died [lua "callbacks are Lua's: the module writes lines, which neither fail nor take long"] = scenarios::callbacks::exit_in_worker_died;
    row17_exit_in_worker_draining [lua "callbacks are Lua's: the module writes lines, which neither fail nor take long"] = scenarios::callbacks::exit_in_worker_draining;
    row17_waiting_callback [lua "callbacks are Lua's: the module writes lines, which neither fail nor take long"] = scenarios::callbacks::waiting_callback;
    row18_slow_callback [lua "callbacks are Lua's: the module writes lines, which neither fail nor take long"] = scenarios::callbacks::slow_callback;
    row18_slow_callback_past_the_timeout [lua "callbacks are Lua's: the module writes lines, which neither fail nor take long"] = scenarios::callbacks::slow_callback_past_the_timeout;
    row18_heartbeats_during_a_slow_callback [lua "callbacks are Lua's: the module writes lines, which neither fail nor take long"] = scenarios::callbacks::heartbeats_during_a_slow_callback;
    row19_stopped_worker_stalls_and_recovers = scenarios::hang::stopped;
    row19_busy_or_blocked_worker = scenarios::hang::busy_or_blocked;
    row19_all_but_one_hang = scenarios::hang::all_but_one;
    row20_hung_then_dead = scenarios::hang::hung_then_dead;
    row20_hung_while_draining_then_dead = scenarios::hang::hung_while_draining_then_dead;
    row21_draining_is_shown_with_its_age = scenarios::drain::shown_while_draining;
    row22_twenty_generations_draining = scenarios::reload::twenty_generations_draining;
    row23_nothing_grows = scenarios::reload::nothing_grows;
    row24_worker_count_changes = scenarios::start_stop::worker_count_changes;
    row25_cache_processes_are_helpers = scenarios::start_stop::cache_processes_are_helpers;
    row25_privileged_agent_is_a_helper = scenarios::openresty::privileged_agent;
    row26_one_process_is_all = scenarios::start_stop::one_process_is_all;
    row27_two_servers = scenarios::identity::two_servers;
    row28_wall_clock_stepped = scenarios::clock::wall_clock_stepped;
    row29_pids_of_strangers = scenarios::death::pids_of_strangers;
    row29_pid_of_one_stranger = scenarios::death::pid_of_one_stranger;
    row30_missing_registry_is_made = scenarios::registry::missing;
    row30_folder_that_cannot_be_made = scenarios::registry::folder_that_cannot_be_made;
    row30_truncated_registry = scenarios::registry::truncated;
    row30_file_that_is_no_registry = scenarios::registry::no_registry;
    row30_corrupt_registry = scenarios::registry::corrupt;
    row30_registry_corrupted_while_running = scenarios::registry::corrupt_while_running;
    row30_registry_of_another_version = scenarios::registry::of_another_version;
    row30_registry_of_another_owner = scenarios::registry::of_another_owner;
    row30_registry_in_a_folder_of_everybody = scenarios::registry::in_a_folder_of_everybody;
    row30_symbolic_link = scenarios::registry::symbolic_link;
    row30_disk_full = scenarios::registry::disk_full;
    row30_said_where_people_look = scenarios::registry::said_where_people_look;
    row30_two_names_on_one_path = scenarios::registry::two_names_on_one_path;
    row30_too_many_workers = scenarios::registry::too_many_workers;
    row30_wrong_options [lua_alone "a wrong directive is nginx's configuration error: see row30_wrong_directives"] = scenarios::registry::wrong_options;
    row31_slow_crash_loop [lua "the crash is in Lua's init_worker"] = scenarios::surroundings::slow_crash_loop;
    row31_tight_crash_loop [lua "the crash is in Lua's init_worker"] = scenarios::surroundings::tight_crash_loop;
    row31_crash_loop_that_ends [lua "the crash is in Lua's init_worker"] = scenarios::surroundings::crash_loop_that_ends;
    row32_dead_in_another_modules_start [native "with Lua, it is its own init_worker: see row 31"] = scenarios::surroundings::dead_in_another_modules_start;
    row36_removed_registry = scenarios::surroundings::removed_registry;
    row36_removed_registry_upgrade = scenarios::surroundings::removed_registry_upgrade;
    row37_recycled = scenarios::surroundings::recycled;
    row37_no_longer_in_the_configuration [lua_alone "the module is switched by its directive: see native::a_reload_turns_it_on_and_off_and_on"] = scenarios::surroundings::no_longer_in_the_configuration;
    row38_killed_with_the_node = scenarios::surroundings::killed_with_the_node;
    row40_lua_in_stream_of_openresty = scenarios::openresty::lua_in_stream;
    row40_code_cache_off_in_openresty [lua "there is no Lua in the module"] = scenarios::openresty::code_cache_off;
    row46_stopped_sentinel = scenarios::surroundings::stopped_sentinel;
    row48_retry_that_dies [lua "callbacks are Lua's: the module writes lines, which neither fail nor take long"] = scenarios::surroundings::retry_that_dies;
    row49_resumed_generation_knows_its_size = scenarios::surroundings::resumed_generation_knows_its_size;
    row50_one_that_never_joined [lua "the delay is in Lua's init_worker"] = scenarios::surroundings::one_that_never_joined;
    row33_timers_used_up [lua "timers are Lua's"] = scenarios::limits::timers_used_up;
    row33_connections_used_up [lua "timers are Lua's"] = scenarios::limits::connections_used_up;
    row39_c_modules [lua "callbacks are Lua's: the module writes lines, which neither fail nor take long"] = scenarios::exits::c_modules;
    row39_c_modules_of_the_seeds_users [lua_alone "the seed's interface is Lua's"] = scenarios::exits::c_modules_of_the_seeds_users;
    row40_code_cache_off [lua_alone "the cache is Lua's, and with the module its directive says where the registry is"] = scenarios::late::code_cache_off;
    row47_told_to_leave_in_a_callback [lua "callbacks are Lua's: the module writes lines, which neither fail nor take long"] = scenarios::exits::told_to_leave_in_a_callback;
    row30_wrong_directives [native "Lua has options, not directives: see row30_wrong_options"] = scenarios::registry::wrong_directives;
}
