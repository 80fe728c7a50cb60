//! Machines in namespaces, and what can be done to their wires and their power.

use std::net::UdpSocket;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use testkit::net::{Net, Running};
use testkit::{process, wait};

/// `None`, with a word: it cannot be had here.
fn net() -> Option<Net> {
    Net::new().inspect_err(|why| eprintln!("SKIPPED: there is no network of our own: {why}")).ok()
}

/// A socket on this machine, whoever uses it.
fn socket(net: &Net, machine: usize) -> UdpSocket {
    let address = net.address(machine);
    let socket = net.on(machine, || UdpSocket::bind((address, 7))).expect("its own address");
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a socket");
    socket
}

static SENT: AtomicU32 = AtomicU32::new(0);

/// Whether something that is sent arrives. The first that is sent on a new wire may be lost.
fn arrives(from: &UdpSocket, to: &UdpSocket) -> bool {
    (0..4).any(|_| {
        let sent = SENT.fetch_add(1, Ordering::Relaxed).to_le_bytes();
        from.send_to(&sent, to.local_addr().expect("it is bound")).expect("it is sent");
        let mut heard = [0; 4];
        // Something older may come first.
        std::iter::from_fn(|| to.recv(&mut heard).is_ok().then_some(heard)).any(|heard| heard == sent)
    })
}

#[test]
fn a_wire_is_cut_one_way_or_both_and_heals() {
    let Some(mut net) = net() else { return };
    let machines = ["a", "b", "c"].map(|name| net.add(name));
    let [a, b, c] = machines.map(|machine| socket(&net, machine));
    assert!(arrives(&a, &b) && arrives(&b, &a) && arrives(&c, &b));
    net.cut(machines[0], machines[1]);
    assert!(!arrives(&a, &b), "it is cut");
    assert!(arrives(&b, &a) && arrives(&a, &c) && arrives(&c, &b), "nothing else is");
    net.part(&machines[..1], &machines[1..]);
    assert!(!arrives(&b, &a) && !arrives(&a, &c) && !arrives(&c, &a));
    assert!(arrives(&b, &c));
    net.heal();
    assert!(arrives(&a, &b) && arrives(&b, &a) && arrives(&a, &c));
}

#[test]
fn a_slow_wire_lets_wait() {
    let Some(mut net) = net() else { return };
    let machines = ["a", "b"].map(|name| net.add(name));
    let [a, b] = machines.map(|machine| socket(&net, machine));
    assert!(arrives(&a, &b));
    let took = || {
        let begun = Instant::now();
        for _ in 0..6 {
            a.send_to(&[0; 1000], b.local_addr().expect("it is bound")).expect("it is sent");
        }
        for _ in 0..6 {
            b.recv(&mut [0; 1000]).expect("it comes");
        }
        begun.elapsed()
    };
    assert!(took() < Duration::from_millis(300));
    // 8 kbit each, of which the first two wait for nothing.
    net.slow(machines[0], 64);
    let slow = took();
    assert!((Duration::from_millis(400)..Duration::from_millis(1_200)).contains(&slow), "{slow:?}");
    net.fast(machines[0]);
    assert!(took() < Duration::from_millis(300));
}

#[test]
fn a_machine_that_loses_its_power_loses_all_that_ran_on_it_and_comes_back() {
    let Some(mut net) = net() else { return };
    let machines = ["web-1", "web-2"].map(|name| net.add(name));
    net.cut(machines[0], machines[1]);
    // Its child is nobody's when it is gone.
    let mut shell = net.command(machines[0], "sh");
    let mut running = Running::start(shell.args(["-c", "sleep 1000 & sleep 1000 & wait"]));
    let all = wait::poll(wait::PATIENCE, || {
        Some(net.processes(machines[0]))
            .filter(|all| all.iter().filter(|&&pid| process::title(pid) == "sleep 1000").count() == 3)
    });
    let all = all.expect("its own and the one that holds it");
    assert!(all.contains(&running.pid()) && running.is_alive());
    net.power_off(machines[0]);
    all.iter().for_each(|&pid| assert!(!process::is_alive(pid), "{pid}"));
    wait::poll(wait::PATIENCE, || running.ended()).expect("whoever waits for it is told");
    net.power_on(machines[0]);
    let name = net.command(machines[0], "cat").arg("/proc/sys/kernel/hostname").output().expect("cat");
    assert_eq!(name.stdout, b"web-1\n");
    // What was cut still is.
    let [a, b] = machines.map(|machine| socket(&net, machine));
    assert!(!arrives(&a, &b) && arrives(&b, &a));
    // Orphans are asked for their ends.
    let mut orphan = net.command(machines[0], "sh");
    assert!(orphan.args(["-c", "sh -c 'exit 0' &"]).status().expect("sh").success());
    wait::poll(wait::PATIENCE, || {
        net.processes(machines[0]).iter().all(|&pid| process::is_alive(pid)).then_some(())
    })
    .expect("no process is a zombie");
}

#[test]
fn nothing_is_left_at_the_end_also_after_a_panic() {
    let Some(mut net) = net() else { return };
    let mut left = Vec::new();
    let panic = catch_unwind(AssertUnwindSafe(|| {
        let machine = net.add("a");
        let running = Running::start(net.command(machine, "sleep").arg("1000"));
        left.extend(net.processes(machine));
        left.push(running.pid());
        let net = net;
        panic!("{}", net.name(machine));
    }));
    assert!(panic.is_err() && left.len() > 1);
    left.into_iter().for_each(|pid| assert!(!process::is_alive(pid), "{pid}"));
}
