use etcd_client::TxnOp;

use super::*;

#[test]
fn a_prefix_ends_where_the_next_one_begins() {
    assert_eq!(end_of("/headcount/v1/shop/"), b"/headcount/v1/shop0");
}

#[test]
fn why_there_is_no_answer_is_said() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    assert_eq!(why_not(&format!("http://{address}")), None);
    drop(free);
    assert!(why_not(&format!("http://{address}")).unwrap().contains("refused"));
}

// With a real etcd: what is waited for when a key is to be free ---------------------------------------------------------

/// Longer than anything may take on a loaded machine.
const LONG: Duration = Duration::from_secs(60);
const KEY: &str = "/x/role";

/// Has a connection to an etcd of its own.
pub(crate) fn with_etcd(test: impl AsyncFnOnce(Etcd, &testkit::Etcd)) {
    let _permit = testkit::permit();
    let server = testkit::Etcd::start();
    // So that no call is given up, however slow the machine is.
    let config = format!("name = \"x\"\nendpoints = [{:?}]\nttl = \"20s\"\n", server.url());
    let config = toml::from_str(&config).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { test(Etcd::connect(&config, "/x/").await.unwrap(), &server).await });
}

impl Etcd {
    async fn put(&self) -> i64 {
        let answer = self.txn("put", Txn::new().and_then([TxnOp::put(KEY, "x", None)])).await.unwrap();
        answer.header().unwrap().revision()
    }

    /// At which revision.
    async fn delete(&self) -> i64 {
        let answer = self.txn("delete", Txn::new().and_then([TxnOp::delete(KEY, None)])).await.unwrap();
        answer.header().unwrap().revision()
    }
}

#[test]
fn a_key_is_free_when_it_was_removed_and_is_not_there_again() {
    with_etcd(async |etcd, _| {
        let revision = etcd.put().await;
        let waiting = etcd.until_free(KEY, revision + 1);
        let mut waiting = std::pin::pin!(waiting);
        let ended = tokio::time::timeout(MOMENT * 4, &mut waiting).await;
        assert!(ended.is_err(), "somebody has it");
        etcd.delete().await;
        tokio::time::timeout(LONG, waiting).await.expect("it is free").unwrap();
        // Of what has happened before it waits it hears at once: somebody was quicker.
        let revision = etcd.put().await;
        let gone = etcd.delete().await;
        assert_eq!((gone, etcd.put().await), (revision + 1, revision + 2));
        let waiting = etcd.until_free(KEY, gone);
        let mut waiting = std::pin::pin!(waiting);
        let ended = tokio::time::timeout(MOMENT * 4, &mut waiting).await;
        assert!(ended.is_err(), "somebody has it again");
        etcd.delete().await;
        tokio::time::timeout(LONG, waiting).await.expect("it is free at last").unwrap();
    });
}

#[test]
fn of_many_that_wait_for_a_key_each_comes_at_a_moment_of_its_own() {
    with_etcd(async |etcd, _| {
        etcd.put().await;
        let gone = etcd.delete().await;
        let mut waiting = JoinSet::new();
        for _ in 0..24 {
            let etcd = etcd.clone();
            waiting.spawn(async move {
                etcd.until_free(KEY, gone).await.unwrap();
                Instant::now()
            });
        }
        let all = async { waiting.join_all().await };
        let mut all = tokio::time::timeout(LONG, all).await.expect("it is free for all of them");
        all.sort_unstable();
        // That of two dozen all draw from the same quarter, which is what this would fail for, does not happen.
        assert!(all[23] - all[0] > MOMENT / 4, "{:?}", all[23] - all[0]);
    });
}

/// Nobody can tell any more what has become of it: so it is looked at anew.
#[test]
fn waiting_for_a_key_ends_where_its_history_was_compacted() {
    with_etcd(async |etcd, _| {
        let revision = etcd.put().await;
        etcd.delete().await;
        let now = etcd.put().await;
        etcd.client.kv_client().compact(now, None).await.unwrap();
        let waiting = etcd.until_free(KEY, revision);
        tokio::time::timeout(LONG, waiting).await.expect("it ends, though somebody has it").unwrap();
    });
}
