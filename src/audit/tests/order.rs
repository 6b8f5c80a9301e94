//! Many writers: order, group commit, bounds.

use futures::future::join_all;

use super::super::{AppendError, Class, Limits};
use super::{Disk, now, open, record, verified};

#[tokio::test]
async fn a_thousand_appends_at_once_share_two_syncs() {
    let disk = Disk::default();
    let (trail, gate) = (disk.trail(), disk.shut());
    let appends = join_all((0..1000).map(|number| trail.append(record(number), now())));
    let opener = async {
        // The other future has been polled once, and so all are in the queue.
        assert_eq!(trail.stats().queue_records, 1000);
        drop(gate);
    };
    let (receipts, ()) = futures::join!(appends, opener);
    let receipts: Vec<_> = receipts.into_iter().map(Result::unwrap).collect();
    assert!(disk.syncs() <= 2, "{} syncs", disk.syncs());
    assert!(receipts.iter().map(|receipt| receipt.sequence).eq(1..=1000), "answers are not in the order of the calls");
    assert_eq!(disk.verified(&receipts).records, 1000);
    let stats = trail.stats();
    assert_eq!((stats.appended, stats.failed, stats.queue_records), (1000, 0, 0));
    assert_eq!(Some(&trail.head()), receipts.last());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn receipts_of_many_threads_are_in_the_order_of_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let (trail, opened) = open(&path).await.unwrap();
    let writers = (0..8).map(|writer| {
        let trail = trail.clone();
        tokio::spawn(async move {
            let mut receipts = Vec::new();
            for number in 0..50 {
                receipts.push(trail.append(record(writer * 50 + number), now()).await.unwrap());
            }
            assert!(receipts.is_sorted_by_key(|receipt| receipt.sequence));
            receipts
        })
    });
    let mut receipts: Vec<_> = join_all(writers).await.into_iter().flat_map(Result::unwrap).collect();
    receipts.push(opened.head);
    trail.close().await;
    assert_eq!(verified(&path, &receipts).records, 401);
}

#[tokio::test]
async fn a_full_queue_refuses_and_takes_again_when_it_is_written() {
    let disk = Disk::default();
    let trail = disk.trail_within(Limits { queue_records_max: 3, ..Limits::default() });
    let gate = disk.shut();
    let appends = join_all((0..5).map(|number| trail.append(record(number), now())));
    let (results, ()) = futures::join!(appends, async { drop(gate) });
    for refused in &results[3..] {
        let error = refused.as_ref().unwrap_err();
        assert!(matches!(error, AppendError::Busy { queue_records: 3 }), "{error}");
        assert_eq!(error.class(), Class::Throttled);
    }
    assert!(results[..3].iter().all(Result::is_ok));
    let receipt = trail.append(record(6), now()).await.unwrap();
    assert_eq!(receipt.sequence, 4);
    assert_eq!(trail.stats().refused, 2);
}

#[tokio::test]
async fn a_queue_is_full_by_bytes_too() {
    let disk = Disk::default();
    let limits = Limits { queue_bytes_max: 2500, record_bytes_max: 1024, ..Limits::default() };
    let (trail, gate) = (disk.trail_within(limits), disk.shut());
    let big = serde_json::json!({ "a": "x".repeat(1000) });
    let appends = join_all((0..3).map(|_| trail.append(big.clone(), now())));
    let (results, ()) = futures::join!(appends, async { drop(gate) });
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 2);
}

#[tokio::test]
async fn an_append_that_nobody_waits_for_is_still_written() {
    let disk = Disk::default();
    let (trail, gate) = (disk.trail(), disk.shut());
    let mut dropped = Box::pin(trail.append(record(1), now()));
    assert!(futures::poll!(&mut dropped).is_pending());
    drop(dropped);
    drop(gate);
    let receipt = trail.append(record(2), now()).await.unwrap();
    assert_eq!(receipt.sequence, 2);
    assert_eq!(disk.verified(&[receipt]).records, 2);
}

#[tokio::test]
async fn closing_writes_what_is_queued() {
    let disk = Disk::default();
    let (trail, gate) = (disk.trail(), disk.shut());
    let appends = join_all((0..100).map(|number| trail.append(record(number), now())));
    let (results, (), ()) = futures::join!(appends, trail.clone().close(), async { drop(gate) });
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(disk.verified(&[]).records, 100);
}

#[tokio::test]
async fn dropping_the_last_handle_writes_what_is_queued_and_lets_go_of_the_disk() {
    let disk = Disk::default();
    let (trail, gate) = (disk.trail(), disk.shut());
    let mut append = Box::pin(trail.append(record(1), now()));
    assert!(futures::poll!(&mut append).is_pending());
    drop(append);
    drop(trail);
    drop(gate);
    while std::sync::Arc::strong_count(&disk.0) > 1 {
        tokio::task::yield_now().await; // the thread's hand on the disk goes last
    }
    assert_eq!(disk.verified(&[]).records, 1);
}
