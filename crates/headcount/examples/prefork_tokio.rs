//! The same small server as `prefork`, whose workers run tokio: each a runtime of its own, on one thread, made after
//! the fork. `AsyncMember::next` is polled in the loop that does the work, so that a loop that hangs does not beat.
//!
//! ```text
//! cargo run --features tokio --example prefork_tokio -- 127.0.0.1:8080 /tmp/demo.registry 4
//! ```

mod master;

use std::net::TcpListener;
use std::time::Duration;

use headcount::{AsyncMember, Generation, Join, Worker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use master::{Failure, show, signals};

fn main() -> Result<(), Failure> {
    master::run("prefork-tokio-example", work)
}

/// A worker's life.
fn work(generation: &Generation, join: Join, listener: &TcpListener) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(generation, join, listener.try_clone()?))
}

async fn serve(generation: &Generation, join: Join, listener: TcpListener) -> Result<(), Failure> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (mut member, started) = AsyncMember::join(generation, join).await?;
    started.run(show);
    let (mut stop, mut drain) = (signal(SignalKind::terminate())?, signal(SignalKind::quit())?);
    // What came before there was somebody to hear it, comes now.
    signals().thread_unblock()?;

    let mut requests = JoinSet::new();
    let mut draining = false;
    while !(draining && requests.is_empty()) {
        tokio::select! {
            transitions = member.next() => transitions.run(show),
            accepted = listener.accept(), if !draining => {
                if let (Ok((stream, _)), Some(worker)) = (accepted, member.member().worker()) {
                    requests.spawn(answer(stream, worker.clone()));
                }
            }
            Some(_) = requests.join_next() => {}
            Some(()) = drain.recv() => {
                draining = true;
                member.drain().await.run(show);
            }
            Some(()) = stop.recv() => break,
        }
    }
    member.leave().await?.run(show);
    Ok(())
}

async fn answer(mut stream: TcpStream, worker: Worker) {
    let mut request = [0; 1024];
    let limit = Duration::from_secs(5);
    if let Ok(Ok(1..)) = timeout(limit, stream.read(&mut request)).await {
        // Time enough to be told to drain meanwhile.
        if request.starts_with(b"GET /slow") {
            sleep(Duration::from_millis(300)).await;
        }
        let body =
            format!("{} workers; generation {}\n", worker.node().snapshot().total, worker.generation());
        let head = format!("HTTP/1.0 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        // A client that has gone is no reason to end.
        let _ = stream.write_all((head + &body).as_bytes()).await;
    }
}
