//! How a process that is none of the server's takes part in its node.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Release;
use std::time::Duration;

use crate::engine::inner::{Inner, Settings};
use crate::engine::node_lock::{Operation, Wait};
use crate::engine::opening;
use crate::engine::session::Session;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Role;
use crate::lifecycle::{Intent, SlotRef};
use crate::registry::files::lock_path;
use crate::registry::header::{boot_id, stored_name};
use crate::registry::layout::Header;
use crate::registry::store::Store;
use crate::sys::atomic::AtomicU64;
use crate::sys::atomic::Ordering::Relaxed;

/// Takes part in the node at `path` from now on. Nobody of it hears the bell of this process: what it does is noticed by the
/// others when they look.
pub(crate) fn visit(path: &Path) -> Result<(Arc<Inner>, SlotRef)> {
    let inner = match opening::with_registry(path) {
        Some(inner) => inner.clone(),
        None => {
            let store = Store::visit(path)?;
            let name = stored_name(store.region.header());
            let settings = settings_in(store.region.header());
            let inner = Arc::new(Inner::new(store, name, path.to_owned(), settings));
            opening::keep(&inner);
            inner
        }
    };
    check(&inner)?;
    let mut session = Session::begin(&inner, Wait::Timeout, Operation::Join)?;
    session.tidy();
    let slot =
        session.claim_slot(Role::Visitor, |slot| slot.intent.store(Intent::Serving.code(), Release))?;
    // What is left of others who had it to themselves.
    session.settle_singletons();
    drop(session);
    let is_there = inner.store.lies_at(path) && inner.store.has_lock_file(&lock_path(path));
    if !is_there {
        let text = format!("{} was removed or replaced at this moment (try again)", inner.place());
        return Err(Error::new(ErrorKind::Busy, text));
    }
    Ok((inner, slot))
}

/// Whether this process can be told apart from those of the node, and they from it.
fn check(inner: &Inner) -> Result<()> {
    let wrong = |text: &str| Err(Error::new(ErrorKind::WrongState, format!("{}{text}", inner.place())));
    let (header, process) = (inner.header(), inner.process());
    if !inner.own_slots(process).is_empty() {
        return wrong(": this process takes part in it already");
    }
    if header.boot_id.each_ref().map(|word| word.load(Relaxed)) != boot_id() {
        return wrong(
            " is of an earlier boot, or /proc does not tell which boot this is (start its server, mount /proc)",
        );
    }
    // Words of locks tell no namespace.
    let namespace = process.identity.namespace;
    if namespace == 0 || header.namespace.load(Relaxed) != namespace {
        return wrong(
            ": its server runs in another pid namespace, a container's, where ids of processes mean others (run it inside of \
             that)",
        );
    }
    if inner.prove_membership() == 0 {
        return wrong(
            ": the system does not let this process lock its lock file, so nobody could tell that it lives",
        );
    }
    Ok(())
}

/// Those of the newest generation, kept within reason whatever the registry says.
fn settings_in(header: &Header) -> Settings {
    const HOUR: Duration = Duration::from_secs(3600);
    let time =
        |word: &AtomicU64| Duration::from_nanos(word.load(Relaxed)).clamp(Duration::from_millis(1), HOUR);
    Settings {
        heartbeat_interval: time(&header.heartbeat_interval_ns),
        stall_after: time(&header.stall_after_ns),
        lock_timeout: time(&header.lock_timeout_ns),
    }
}
