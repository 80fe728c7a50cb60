//! `resty.worker.manager` as the seed's users know it.

use testkit::{Integration, permit, scenarios::seed};

macro_rules! seed {
    ($($name:ident = $scenario:path;)*) => {
        $(
            #[test]
            fn $name() {
                let _permit = permit();
                $scenario(Integration::Lua);
            }
        )*
    };
}

seed! {
    the_synopsis_of_its_readme_works_unchanged = seed::synopsis;
    arguments_and_ids_are_the_documented_ones = seed::arguments;
    a_respawn_shows_in_n_mine = seed::respawn_shows_in_n_mine;
    exit_callbacks_run_when_draining_begins = seed::exit_when_draining_begins;
    a_failed_reload_is_no_ghost = seed::failed_reload;
    a_death_does_not_hold_up_the_end = seed::death_before_a_reload;
    native_options_work_and_wrong_ones_are_named = seed::options;
}
