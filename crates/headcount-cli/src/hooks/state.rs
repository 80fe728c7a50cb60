//! The state file: which event is next, which of its deliveries are finished, and which one is in progress.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::notification::Notification;
use super::rules::{Rule, hash, hash_of};
use crate::find::node_name;

/// The version of the file. Others are refused: what they say may mean something else.
const VERSION: u64 = 1;

/// What to do about a file that cannot be used.
pub const ANOTHER: &str = "choose another with --state (for a hook of the agent: give the hook another name)";

/// What the file holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// `headcount_run`: the file's version.
    #[serde(rename = "headcount_run")]
    version: u64,
    /// The registry that is followed; none before the first one was found.
    pub registry: Option<Registry>,
    /// The event that is next; 0: the oldest that is kept.
    pub next_seq: u64,
    /// Whether the node is up, according to what was delivered.
    pub node_is_up: bool,
    /// When to ask the kernel whether it is.
    pub ask: Ask,
    /// Finished deliveries of the next event.
    pub finished: Vec<Delivery>,
    /// The delivery in progress.
    pub in_flight: Option<InFlight>,
}

/// A registry. Its creation time tells it from others. The boot does not: a registry on a disk outlives it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registry {
    pub node: String,
    pub path: PathBuf,
    pub created_ns: u64,
    /// For people: the boot in which it was last looked at.
    pub boot_id: String,
}

/// When to ask the kernel whether the node is up, where the journal no longer says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// The journal says it.
    #[default]
    Never,
    /// The start of the present run is gone from it.
    AtOnce,
    /// Something is gone from it, and what is left may say it.
    WhenCaughtUp,
}

/// One delivery: an event at a position in the journal, to a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    pub at: u64,
    pub event: String,
    pub rule: String,
}

/// A delivery that has begun.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InFlight {
    pub delivery: Delivery,
    /// Attempts so far, with the one that runs.
    pub attempt: u32,
    /// Those of them that failed.
    pub failures: u32,
    /// An attempt runs. If a start finds this, nobody knows how it ended.
    pub running: bool,
    /// An earlier attempt was interrupted.
    pub interrupted: bool,
    /// What it delivers: by the next attempt the journal may have overwritten it.
    pub document: Map<String, Value>,
    /// The command that runs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub process: Option<Leader>,
}

/// A process that leads its process group, by pid and start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    pub pid: u32,
    pub start_time: u64,
}

/// The file, and the state that the next save writes.
pub struct StateFile {
    path: PathBuf,
    pub state: State,
    saved: Option<State>,
}

impl StateFile {
    /// Reads the file, if there is one.
    pub fn open(path: &Path) -> anyhow::Result<StateFile> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let state = match File::options().read(true).custom_flags(flags.bits() as i32).open(path) {
            Ok(file) => Some(parse(&read(file, path)?, path)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let fresh = State { version: VERSION, ..State::default() };
        Ok(StateFile { path: path.to_owned(), state: state.clone().unwrap_or(fresh), saved: state })
    }
}

/// Where it is kept what was delivered and what is in progress, so that another process can go on.
pub trait Record {
    /// The deliveries of the next event that are finished.
    fn finished(&mut self) -> &mut Vec<Delivery>;
    /// The delivery in progress.
    fn in_flight(&mut self) -> &mut Option<InFlight>;
    /// The same for each attempt at this delivery, and unique.
    fn id(&self, notification: &Notification) -> String;
    /// Returns when all of it is kept.
    fn save(&mut self) -> anyhow::Result<()>;
}

impl Record for StateFile {
    fn finished(&mut self) -> &mut Vec<Delivery> {
        &mut self.state.finished
    }

    fn in_flight(&mut self) -> &mut Option<InFlight> {
        &mut self.state.in_flight
    }

    fn id(&self, notification: &Notification) -> String {
        let registry = self.state.registry.as_ref();
        let (node, created) = registry.map_or(("", 0), |r| (r.node.as_str(), r.created_ns));
        format!("{node}/{created}/{}/{}", notification.at, notification.event)
    }

    /// Writes the state if it has changed, and waits until it is on disk.
    fn save(&mut self) -> anyhow::Result<()> {
        if self.saved.as_ref() == Some(&self.state) {
            return Ok(());
        }
        replace(&self.path, &self.state)
            .with_context(|| format!("cannot write the state file {}", self.path.display()))?;
        self.saved = Some(self.state.clone());
        Ok(())
    }
}

/// What is in the file. It names a process that is waited for, and stopped if it takes too long: so it must be written by
/// somebody who may stop that process.
fn read(mut file: File, path: &Path) -> anyhow::Result<Vec<u8>> {
    let context = || format!("cannot read {}", path.display());
    let found = file.metadata().with_context(context)?;
    if !found.is_file() {
        bail!("the state file {} is not a regular file: {ANOTHER}", path.display());
    }
    must_be_ours(path, &found)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).with_context(context)?;
    Ok(bytes)
}

/// Refuses a file of another user who is not root.
pub fn must_be_ours(path: &Path, found: &fs::Metadata) -> anyhow::Result<()> {
    let me = rustix::process::geteuid().as_raw();
    if found.uid() != me && found.uid() != 0 {
        bail!(
            "{} belongs to uid {}, but this runs as uid {me}: run it as that user, or {ANOTHER}",
            path.display(),
            found.uid()
        );
    }
    Ok(())
}

fn parse(bytes: &[u8], path: &Path) -> anyhow::Result<State> {
    let fix = format!(
        "remove it to start over (events from --from on are then delivered, perhaps again), or {ANOTHER}"
    );
    let path = path.display();
    let value: Value = match serde_json::from_slice(bytes) {
        Ok(value) => value,
        Err(error) => bail!("the state file {path} is corrupt: {error}; {fix}"),
    };
    match value.get("headcount_run").and_then(Value::as_u64) {
        Some(VERSION) => {}
        Some(version) => bail!(
            "the state file {path} has version {version}, this is headcount {} with version {VERSION}: use the \
             version of headcount that wrote it, or {fix}",
            env!("CARGO_PKG_VERSION")
        ),
        None => {
            bail!("{path} is not a state file of `headcount run`: {ANOTHER}")
        }
    }
    serde_json::from_value(value)
        .map_err(|error| anyhow::anyhow!("the state file {path} is corrupt: {error}; {fix}"))
}

/// By rename: a reader finds either the whole old file or the whole new one.
fn replace(path: &Path, state: &State) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut text = serde_json::to_vec_pretty(state)?;
    text.push(b'\n');
    // One that exists is left by an interrupted write, or is somebody's link to where we should write.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// The file for this node and these rules, if none was named.
pub fn default_path(registry: &Path, rules: &[Rule]) -> anyhow::Result<PathBuf> {
    let hash = hash([registry.to_string_lossy().as_ref(), &format!("{:016x}", hash_of(rules))]);
    Ok(made_folder()?.join(format!("{}-{hash:016x}.json", node_name(registry))))
}

/// The file for this node and the hook of this name: so its rules can change, and it goes on where it was.
pub fn path_of_hook(hook: &str, registry: &Path) -> anyhow::Result<PathBuf> {
    let hash = hash([hook, registry.to_string_lossy().as_ref()]);
    Ok(made_folder()?.join(format!("hook-{hook}-{}-{hash:016x}.json", node_name(registry))))
}

fn made_folder() -> anyhow::Result<PathBuf> {
    let folder = default_folder()?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).with_context(|| {
        format!(
            "cannot create the folder {} for the state file (choose a file with --state)",
            folder.display()
        )
    })?;
    Ok(folder)
}

fn default_folder() -> anyhow::Result<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(given) = std::env::var_os("STATE_DIRECTORY").filter(|value| !value.is_empty()) {
        // Of systemd; several are separated by colons.
        return Ok(std::env::split_paths(&given).next().unwrap_or_default());
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/headcount"));
    }
    let home = || folder("HOME").map(|home| home.join(".local/state"));
    match folder("XDG_STATE_HOME").filter(|path| path.is_absolute()).or_else(home) {
        Some(base) => Ok(base.join("headcount")),
        None => bail!(
            "neither XDG_STATE_HOME nor HOME is set: choose a state file with --state, or set STATE_DIRECTORY"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> State {
        let delivery = Delivery { at: 7, event: "worker_died".into(), rule: "0123456789abcdef".into() };
        State {
            version: VERSION,
            registry: Some(Registry {
                node: "nginx".into(),
                path: "/run/headcount/nginx.registry".into(),
                created_ns: 1_700_000_000_123_456_789,
                boot_id: "00".into(),
            }),
            next_seq: 7,
            node_is_up: true,
            ask: Ask::WhenCaughtUp,
            finished: vec![delivery.clone()],
            in_flight: Some(InFlight {
                delivery,
                attempt: 2,
                failures: 1,
                running: true,
                interrupted: false,
                document: Map::new(),
                process: Some(Leader { pid: 4711, start_time: 12 }),
            }),
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let text = serde_json::to_vec(&full()).expect("plain values");
        assert_eq!(parse(&text, Path::new("x")).expect("a state"), full());
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_fix() {
        let text = serde_json::to_string(&full()).expect("plain values");
        for (text, said) in [
            (text.replace("\"headcount_run\":1", "\"headcount_run\":2"), "has version 2, this is headcount"),
            (text.replace("7", "-7"), "is corrupt: "),
            (text.replace("next_seq", "next_sec"), "is corrupt: unknown field `next_sec`"),
            (text[..text.len() / 2].to_owned(), "is corrupt: EOF"),
            (String::new(), "is corrupt: EOF"),
            ("{\"a\": 1}".into(), "is not a state file of `headcount run`"),
        ] {
            let error = parse(text.as_bytes(), Path::new("/x/state.json")).expect_err(&text).to_string();
            assert!(
                error.contains(said) && error.contains("/x/state.json") && error.contains("--state"),
                "{error}"
            );
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..Default::default() })]

        /// A file with some of its bytes changed, left out or put twice: it is read as what it says, or refused with its name.
        #[test]
        fn a_file_that_is_spoiled_is_a_state_or_is_refused(
            edits in proptest::collection::vec((proptest::num::usize::ANY, 0usize..40, "[-0-9\\[\\]{},:\"a-z\\PC]{0,12}"), 0..6),
        ) {
            let mut text = serde_json::to_string(&full()).expect("plain values");
            for (at, left_out, put_in) in edits {
                let place = |at: usize| text.char_indices().map(|(i, _)| i).nth(at).unwrap_or(text.len());
                let at = at % (text.chars().count() + 1);
                text.replace_range(place(at)..place(at + left_out), &put_in);
            }
            match parse(text.as_bytes(), Path::new("/x/state.json")) {
                Ok(state) => {
                    let again = serde_json::to_vec(&state).expect("plain values");
                    proptest::prop_assert_eq!(parse(&again, Path::new("x")).expect("a state"), state);
                }
                Err(error) => proptest::prop_assert!(error.to_string().contains("/x/state.json"), "{}", error),
            }
        }

        #[test]
        fn any_bytes_are_a_state_or_are_refused(bytes in proptest::collection::vec(0u8.., 0..200)) {
            if let Err(error) = parse(&bytes, Path::new("/x/state.json")) {
                proptest::prop_assert!(error.to_string().contains("/x/state.json"), "{}", error);
            }
        }
    }
}
