//! What the agent answers: metrics and the page of all nodes of its host, on a socket and, if asked, on a port.

use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use headcount::Observer;
use headcount_cluster::claims::Claims;
use headcount_cluster::config::Config;
use headcount_cluster::publisher::Status;
use headcount_cluster_client::protocol::{PATH, UPGRADE};
use headcount_report::{Format, NodeDocument, StatusDocument};
use serde_json::{Value, json};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::bounded::{Bounded, BoundedPort};
use super::cluster::Membership;
use super::nodes::registries;
use super::picture::Picture;
use super::session::{self, Allowed, Caller};
use crate::clock::wall_ns;
use crate::commands::status::reading::{self, Reading};

/// So many look at the nodes at once. The others wait.
const AT_ONCE: usize = 4;

/// What it listens on. When it is dropped, the socket is removed.
pub struct Sockets {
    local: UnixListener,
    network: Option<TcpListener>,
    path: SocketPath,
    allowed: Allowed,
}

/// All that answers there, until it is closed or dropped.
pub struct Listeners {
    tasks: JoinSet<()>,
    _path: SocketPath,
}

/// The socket that was made there: its device and number tell it from one that another agent has made since.
struct SocketPath {
    path: PathBuf,
    file: Option<(u64, u64)>,
}

struct Shared {
    further: Vec<PathBuf>,
    cluster: Option<Box<dyn Fn() -> Status + Send + Sync>>,
    room: Semaphore,
    picture: Option<Picture>,
    claims: Option<Claims>,
    allowed: Allowed,
}

impl Sockets {
    pub fn bind(config: &Config) -> anyhow::Result<Sockets> {
        let allowed = Allowed::find(&config.agent.claims)?;
        let local = listen(&config.agent.socket)?;
        let path = SocketPath::new(&config.agent.socket);
        let bind = |address| {
            let network = std::net::TcpListener::bind(address)?;
            network.set_nonblocking(true)?;
            TcpListener::from_std(network)
        };
        let network = config.agent.listen.map(|address| {
            bind(address).with_context(|| format!("cannot listen on {address} (agent.listen)"))
        });
        Ok(Sockets { local, network: network.transpose()?, path, allowed })
    }

    pub fn serve(self, config: &Config, membership: &Membership) -> Listeners {
        let Sockets { local, network, path, allowed } = self;
        let shared = Arc::new(Shared {
            further: config.agent.registries.clone(),
            cluster: membership.reader().map(|reader| Box::new(reader) as _),
            room: Semaphore::new(AT_ONCE),
            picture: membership.picture().cloned(),
            claims: membership.claims().cloned(),
            allowed,
        });
        let everywhere = Router::new()
            .route("/", get(status))
            .route("/metrics", get(metrics))
            .route("/cluster", get(cluster));
        // What goes on for long, and who has what, is for this host.
        let here = everywhere.clone().route("/cluster/events", get(events)).route(PATH, get(session));
        let complete = |app: Router<Arc<Shared>>, text: &'static str| {
            app.fallback(move || async move { (StatusCode::NOT_FOUND, text) }).with_state(Arc::clone(&shared))
        };
        let here = complete(
            here,
            "There is / (a page, or JSON), /metrics, /cluster, /cluster/events and /cluster/session.\n",
        );
        let mut tasks = JoinSet::new();
        let answers = here.into_make_service_with_connect_info::<Caller>();
        let local = Bounded::new(local);
        tasks.spawn(async { ended(axum::serve(local, answers).await) });
        if let Some(network) = network {
            let app = complete(everywhere, "There is / (a page, or JSON), /metrics and /cluster.\n");
            let network = BoundedPort::new(network);
            tasks.spawn(async { ended(axum::serve(network, app).await) });
        }
        Listeners { tasks, _path: path }
    }
}

impl Listeners {
    /// After this, something else can listen there.
    pub async fn close(mut self) {
        self.tasks.shutdown().await;
    }
}

fn ended(how: std::io::Result<()>) {
    if let Err(error) = how {
        tracing::error!("does not answer any more: {error}");
    }
}

impl SocketPath {
    fn new(path: &Path) -> SocketPath {
        SocketPath { path: path.to_owned(), file: file_at(path) }
    }
}

fn file_at(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        // It may be gone with its folder.
        if self.file.is_some() && self.file == file_at(&self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A socket that everybody may connect to, as everybody may read a registry. What an agent that was killed has left is removed.
fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let what = || format!("cannot listen on {} (agent.socket)", path.display());
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            bail!("{}: there is something else, which is left alone", what())
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => bail!("{}: another agent answers there", what()),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).with_context(what)?
            }
            Err(error) => return Err(error).with_context(what),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(what),
    }
    let bind = UnixListener::bind(path);
    if bind.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
        bail!("{}: there is no such folder: make it, or name another one", what());
    }
    let listener = bind.with_context(what)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).with_context(what)?;
    Ok(listener)
}

async fn status(State(shared): State<Arc<Shared>>, uri: Uri, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let format = Format::negotiate(None, accept);
    // The page asks for it again and again. Who reads the nodes of this host need not make etcd tell of all others.
    let is_asked_for = uri.query().is_some_and(|query| query.split('&').any(|part| part == "cluster"));
    let all_hosts = match &shared.picture {
        Some(picture) if format == Format::Html || is_asked_for => Some(picture.state().await),
        _ => None,
    };
    answer(shared, format, all_hosts).await
}

/// The fleet as [`Picture::state`] has it, in megabytes that all who ask share.
type AllHosts = Result<Bytes, String>;

/// The same as a part of another document, with the time, or what is wrong.
fn document_of(all_hosts: AllHosts) -> Value {
    match all_hosts.and_then(|text| serde_json::from_slice::<Value>(&text).map_err(|e| e.to_string())) {
        Ok(mut document) => {
            document["time"] = (wall_ns() as f64 / 1e9).into();
            document
        }
        Err(why) => json!({ "trouble": why }),
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    answer(shared, Format::Prometheus, None).await
}

const NO_CLUSTER: &str = "This agent has no cluster: its configuration has no [cluster].\n";

async fn cluster(State(shared): State<Arc<Shared>>) -> Response {
    let Some(picture) = &shared.picture else { return away(NO_CLUSTER.to_owned()) };
    match picture.state().await {
        Ok(document) => ([(header::CONTENT_TYPE, Format::Json.content_type())], document).into_response(),
        Err(why) => away(why + "\n"),
    }
}

async fn events(State(shared): State<Arc<Shared>>, ConnectInfo(caller): ConnectInfo<Caller>) -> Response {
    let Some(picture) = &shared.picture else { return away(NO_CLUSTER.to_owned()) };
    // A stranger must not keep the servers of this host from following.
    let is_trusted = shared.allowed.has(&caller).await;
    match picture.events(is_trusted).await {
        Some(lines) => {
            caller.may_be_quiet();
            ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
        }
        None => away("Too many follow the events already.\n".to_owned()),
    }
}

async fn session(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    mut request: Request,
) -> Response {
    let Some(claims) = &shared.claims else { return away(NO_CLUSTER.to_owned()) };
    if !session::is_asked_for(request.headers()) {
        let text = format!("Ask for it with `Connection: Upgrade` and `Upgrade: {UPGRADE}`.\n");
        return (StatusCode::UPGRADE_REQUIRED, [(header::UPGRADE, UPGRADE)], text).into_response();
    }
    if !shared.allowed.has(&caller).await {
        let text = format!(
            "{} may not have roles, onces and locks: agent.claims in the agent's configuration says who may.\n",
            caller.name()
        );
        return (StatusCode::FORBIDDEN, text).into_response();
    }
    if !session::begin(claims, &caller, hyper::upgrade::on(&mut request)).await {
        return away("Too many processes are connected already.\n".to_owned());
    }
    caller.may_be_quiet();
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, UPGRADE)];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

fn away(why: String) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
}

async fn answer(shared: Arc<Shared>, format: Format, cluster: Option<AllHosts>) -> Response {
    // What is made for each of them takes memory and time. It is never closed.
    let _turn = shared.room.acquire().await;
    let sharing = Arc::clone(&shared);
    let text = tokio::task::spawn_blocking(move || text(&sharing, format, cluster)).await;
    match text.map_err(anyhow::Error::from).and_then(|text| text) {
        Ok(text) => {
            let mut answer = ([(header::CONTENT_TYPE, format.content_type())], text).into_response();
            for (name, value) in format.headers() {
                if let (Ok(name), Ok(value)) =
                    (header::HeaderName::try_from(name), header::HeaderValue::try_from(value))
                {
                    answer.headers_mut().insert(name, value);
                }
            }
            answer
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    }
}

fn text(shared: &Shared, format: Format, cluster: Option<AllHosts>) -> anyhow::Result<String> {
    let readings: Vec<Reading> = registries(&shared.further)
        .into_iter()
        .filter_map(|path| {
            // One that cannot be read was told of in the log, and does not hide the others.
            Observer::open(&path).and_then(|observer| Reading::at(path, &observer)).ok()
        })
        .collect();
    let documents = || {
        let all = readings.iter().map(|reading| NodeDocument::new(&reading.snapshot, &reading.history));
        StatusDocument::new(all.collect()).with_cluster(cluster.map(document_of))
    };
    Ok(match format {
        Format::Json => serde_json::to_string(&documents())? + "\n",
        Format::Html => headcount_report::page(&documents())?,
        Format::Prometheus => {
            let cluster = shared.cluster.as_ref().map_or(String::new(), |status| of_cluster(&status()));
            reading::metrics(&readings)? + &cluster
        }
    })
}

fn of_cluster(status: &Status) -> String {
    let mut text = String::new();
    for (name, kind, help, value) in [
        (
            "agent_cluster_connected",
            "gauge",
            "1 if this host is there for the cluster.",
            u64::from(status.connected),
        ),
        ("agent_cluster_writes_total", "counter", "Writes to etcd.", status.writes),
        ("agent_cluster_events_total", "counter", "Events that were told to the cluster.", status.events),
        (
            "agent_cluster_events_missed_total",
            "counter",
            "Events that were not told to the cluster: too many, or overwritten.",
            status.missed,
        ),
    ] {
        text += &format!(
            "# HELP headcount_{name} {help}\n# TYPE headcount_{name} {kind}\nheadcount_{name} {value}\n"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_another_agent_has_made_since_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let _ours = std::os::unix::net::UnixListener::bind(at("ours")).unwrap();
        let (first, second) = (SocketPath::new(&at("ours")), SocketPath::new(&at("ours")));
        std::fs::rename(at("ours"), at("aside")).unwrap();
        let _theirs = std::os::unix::net::UnixListener::bind(at("ours")).unwrap();
        drop(first);
        assert!(at("ours").exists(), "another agent listens there");
        std::fs::rename(at("aside"), at("ours")).unwrap();
        drop(second);
        assert!(!at("ours").exists());
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        std::fs::write(&path, "x").unwrap();
        assert!(format!("{:#}", listen(&path).unwrap_err()).contains("something else"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "x");
        std::fs::remove_file(&path).unwrap();
        let first = listen(&path).unwrap();
        assert!(format!("{:#}", listen(&path).unwrap_err()).contains("another agent answers"));
        // What one that was killed has left.
        drop(first);
        assert!(path.exists());
        listen(&path).unwrap();
        let nowhere = format!("{:#}", listen(Path::new("/nowhere/agent.sock")).unwrap_err());
        assert!(nowhere.contains("/nowhere/agent.sock (agent.socket)"), "{nowhere}");
    }
}
