//! The core module: nginx's hooks, one line each.

use std::ffi::{c_char, c_void};
use std::ptr;

use ngx::core::Pool;
use ngx::ffi::{
    self, NGX_CONF_ANY, NGX_CORE_MODULE, NGX_DIRECT_CONF, NGX_MAIN_CONF, NGX_OK, ngx_command_t,
    ngx_core_module_t, ngx_cycle_t, ngx_int_t, ngx_module_t, ngx_uint_t,
};
use ngx::ngx_string;

use crate::hooks::directive::{self, MainConf};
use crate::hooks::variables;
use crate::nginx::border::entry;
use crate::nginx::facts::{self, Process};
use crate::nginx::log;
use crate::node::loading::Loading;
use crate::node::master::Begun;
use crate::node::state::state;
use crate::node::{loading, lua, master, member};

static mut COMMANDS: [ngx_command_t; 2] = [
    ngx_command_t {
        name: ngx_string!("headcount"),
        type_: (NGX_MAIN_CONF | NGX_DIRECT_CONF | NGX_CONF_ANY) as ngx_uint_t,
        set: Some(directive::set),
        conf: 0,
        offset: 0,
        post: ptr::null_mut(),
    },
    ngx_command_t::empty(),
];

static mut CONTEXT: ngx_core_module_t = ngx_core_module_t {
    name: ngx_string!("headcount"),
    create_conf: Some(create_conf),
    init_conf: Some(init_conf),
};

/// What tracks the processes.
#[allow(non_upper_case_globals)]
pub static mut ngx_headcount_module: ngx_module_t = ngx_module_t {
    ctx: (&raw mut CONTEXT).cast(),
    commands: (&raw mut COMMANDS).cast(),
    type_: NGX_CORE_MODULE as ngx_uint_t,
    init_module: Some(init_module),
    init_process: Some(init_process),
    exit_process: Some(exit_process),
    exit_master: Some(exit_master),
    ..ngx_module_t::default()
};

/// Whatever went wrong is in the log; nginx would take any other answer as a reason to end.
const SERVE: ngx_int_t = NGX_OK as ngx_int_t;

unsafe extern "C" fn create_conf(cycle: *mut ngx_cycle_t) -> *mut c_void {
    entry("create_conf", ptr::null_mut(), || {
        // SAFETY: a new cycle has its pool.
        let conf = unsafe { Pool::from_ngx_pool((*cycle).pool) }.allocate(MainConf::default());
        loading::begins();
        conf.cast()
    })
}

/// The configuration has been read; the sockets are not open yet, so it may still fail.
unsafe extern "C" fn init_conf(cycle: *mut ngx_cycle_t, conf: *mut c_void) -> *mut c_char {
    entry("init_conf", ptr::null_mut(), || {
        if facts::process() != Process::Signaller {
            // SAFETY: the configuration has been read.
            if let Some(text) = unsafe { unknown_role(cycle) } {
                log::refuse(cycle, &text);
                return log::conf_error();
            }
        }
        if facts::is_test() {
            let is_fine = loading::so_far().settings.is_none_or(|settings| master::look(&settings));
            return if is_fine { ptr::null_mut() } else { log::conf_error() };
        }
        if facts::process() == Process::Signaller {
            return ptr::null_mut();
        }
        // SAFETY: what create_conf has made; nobody else uses it meanwhile.
        let Some(conf) = (unsafe { conf.cast::<MainConf>().as_mut() }) else { return ptr::null_mut() };
        if let Loading { settings: Some(settings), is_asked_by_lua, is_led_by_lua: false } = loading::so_far()
        {
            // SAFETY: the configuration has been read.
            conf.begins_late = !is_asked_by_lua && unsafe { lua::may_come_late(cycle) };
            if !conf.begins_late {
                // SAFETY: nginx's core module comes before ours.
                let workers = unsafe { facts::worker_processes(cycle) };
                conf.begun = master::begin(&settings, workers);
            }
        }
        ptr::null_mut()
    })
}

/// What is wrong with a variable after a role that no worker stands for. Where Lua is in charge, it says which there are, and when
/// it likes.
///
/// # Safety
/// The configuration has been read.
unsafe fn unknown_role(cycle: *mut ngx_cycle_t) -> Option<String> {
    let Loading { settings, is_asked_by_lua, .. } = loading::so_far();
    let roles = settings?.roles;
    // SAFETY: by the caller's word.
    let (asked_for, may_be_lua) =
        unsafe { (variables::roles_asked_for(cycle), is_asked_by_lua || lua::may_come_late(cycle)) };
    let unknown = asked_for.into_iter().find(|role| !roles.contains(role)).filter(|_| !may_be_lua)?;
    let there = match roles.is_empty() {
        true => "the directive \"headcount\" has no parameter \"roles\"".to_owned(),
        false => format!("\"roles\" of the directive \"headcount\" has {}", roles.join(", ")),
    };
    Some(format!("no worker stands for the role of $headcount_leads_{unknown}: {there}"))
}

/// The configuration is in force.
unsafe extern "C" fn init_module(cycle: *mut ngx_cycle_t) -> ngx_int_t {
    entry("init_module", SERVE, || {
        if facts::is_test() {
            return SERVE;
        }
        // SAFETY: what create_conf has made lies at our place in the cycle; nobody else uses it meanwhile.
        let conf =
            unsafe { (*(*cycle).conf_ctx.add(ngx_headcount_module.index)).cast::<MainConf>().as_mut() };
        let Loading { settings, is_led_by_lua, .. } = loading::ends();
        let tracked = conf.and_then(|conf| match (&settings, &mut conf.begun) {
            (Some(settings), _) if is_led_by_lua => master::commit_for_lua(settings),
            (Some(settings), begun) if conf.begins_late => {
                // SAFETY: as above.
                *begun = master::begin(settings, unsafe { facts::worker_processes(cycle) });
                begun.as_mut().map(Begun::commit)
            }
            (_, Some(begun)) => Some(begun.commit()),
            _ => None,
        });
        // SAFETY: a new cycle's log is open by now.
        log::release(unsafe { (*cycle).log });
        let mut state = state();
        let before = std::mem::replace(&mut state.tracked, tracked.clone());
        if let (None, Some(before)) = (&tracked, before) {
            master::goes_on_untracked(&state.masters, &before);
        }
        let is_single = member::is_one() && facts::process() == Process::Single;
        drop(state);
        if is_single {
            // The one process is its own successor.
            member::leave();
            let tracked = tracked.filter(|tracked| !tracked.is_led_by_lua);
            tracked.iter().for_each(|tracked| member::start(tracked, Some(0)));
        }
        SERVE
    })
}

unsafe extern "C" fn init_process(_: *mut ngx_cycle_t) -> ngx_int_t {
    entry("init_process", SERVE, || {
        let mut state = state();
        let process = facts::process();
        state.is_child = process != Process::Single;
        let Some(tracked) = state.tracked.clone().filter(|tracked| !tracked.is_led_by_lua) else {
            return SERVE;
        };
        drop(state);
        match process {
            Process::Worker => member::start(&tracked, facts::worker_number()),
            Process::Single => {
                // Nobody forks, so that no fork has told who went into the background.
                master::adopt();
                member::start(&tracked, Some(0));
            }
            _ => member::start_helper(&tracked),
        }
        SERVE
    })
}

unsafe extern "C" fn exit_process(_: *mut ngx_cycle_t) {
    entry("exit_process", (), member::leave);
}

unsafe extern "C" fn exit_master(_: *mut ngx_cycle_t) {
    entry("exit_master", (), master::leave);
}

const _: () = assert!(ffi::NGX_OK == 0);
