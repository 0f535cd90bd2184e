use serde_json::json;
use smoltcp::socket::tcp::State;

use super::*;

fn small() -> Guest {
    Guest::new(json!({"a": {"b": "c"}}), MmdsVersion::V1, 1_500)
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").expect("a head").1
}

#[test]
fn guest_reads_its_metadata_over_tcp() {
    let mut guest = small();
    let connection = guest.connect();
    guest.say(connection, "GET /a/b HTTP/1.1\r\n\r\n");
    let answer = guest.hear(connection);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert_eq!(body(&answer), "c");
    // In pieces, and two at once.
    guest.say(connection, "GET /a/b HT");
    assert_eq!(guest.hear(connection), "");
    guest.say(connection, "TP/1.1\r\n\r\nGET /a HTTP/1.1\r\n\r\n");
    let answers = guest.hear(connection);
    let (first, second) = answers.split_at(answers.rfind("HTTP/1.1").expect("two"));
    assert_eq!((body(first), body(second)), ("c", "b"));
    let counters = &guest.counters;
    assert_eq!((counters.created.get(), counters.destroyed.get()), (1, 0));
    // An ARP request and so on: all of it was for the service, and all of it was right.
    assert_eq!(counters.accepted.get(), counters.count.get());
    assert_eq!(counters.tx_frames.get(), counters.tx_count.get());
    guest.socket(connection).close();
    guest.settle();
    assert_eq!(guest.counters.destroyed.get(), 1);
}

#[test]
fn session_of_version_2_needs_its_token() {
    let mut guest = Guest::new(json!({"a": "b"}), MmdsVersion::V2, 1_500);
    let connection = guest.connect();
    guest.say(connection, "GET /a HTTP/1.1\r\n\r\n");
    assert!(guest.hear(connection).starts_with("HTTP/1.1 401 "));
    let ask = "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 5\r\n\r\n";
    guest.say(connection, ask);
    let token = body(&guest.hear(connection)).to_owned();
    // The session is not the connection.
    let other = guest.connect();
    let with = format!("GET /a HTTP/1.1\r\nX-metadata-token: {token}\r\n\r\n");
    guest.say(other, &with);
    assert_eq!(body(&guest.hear(other)), "b");
}

#[test]
fn answer_of_the_largest_store_arrives_whole_whatever_the_mtu_and_the_losses() {
    let long = "0123456789".repeat(20_000);
    for (mtu, period) in [(1_500, 0), (576, 0), (1_500, 7), (600, 11)] {
        let mut guest = Guest::new(json!({"a": long}), MmdsVersion::V1, mtu);
        let connection = guest.connect();
        guest.say(connection, "GET /a HTTP/1.1\r\nConnection: close\r\n\r\n");
        let mut frames = 0;
        guest.loses = Box::new(move || {
            frames += 1;
            period > 0 && frames % period == 0
        });
        let mut answer = String::new();
        for _ in 0..10_000 {
            answer += &guest.hear(connection);
            if !guest.socket(connection).may_recv() {
                break;
            }
            // Where nothing is lost, nobody waits for a timer.
            assert!(period > 0, "{mtu}: {} bytes", answer.len());
            guest.wait(Nanos::new(20_000_000));
        }
        assert_eq!(body(&answer).len(), long.len(), "{mtu} {period}");
        assert!(body(&answer) == long, "{mtu} {period}");
    }
}

/// As many as a guest likes one after the other, whoever closes first.
#[test]
fn connections_that_ended_make_room_at_once() {
    let mut guest = small();
    for round in 0..4 * CONNECTIONS {
        let close = if round % 2 == 0 {
            "Connection: close\r\n"
        } else {
            ""
        };
        let connection = guest.connect();
        guest.say(connection, &format!("GET /a/b HTTP/1.1\r\n{close}\r\n"));
        let answer = guest.hear(connection);
        assert_eq!(body(&answer), "c", "{round}");
        guest.socket(connection).close();
        guest.settle();
        let ended = guest.socket(connection).state();
        assert!(
            matches!(ended, State::Closed | State::TimeWait),
            "{round}: {ended}"
        );
    }
    let all = u64::try_from(4 * CONNECTIONS).expect("small");
    let counters = &guest.counters;
    assert_eq!(
        (counters.created.get(), counters.destroyed.get()),
        (all, all)
    );
}

#[test]
fn connection_beyond_the_bound_is_refused_and_idle_ones_are_reset() {
    let mut guest = small();
    let taken: Vec<_> = (0..CONNECTIONS).map(|_| guest.connect()).collect();
    guest.say(taken[0], "GET /a/b HT");
    for connection in &taken {
        assert_eq!(guest.socket(*connection).state(), State::Established);
    }
    let further = guest.connect();
    assert_eq!(guest.socket(further).state(), State::Closed);
    guest.wait(Nanos::new(PATIENCE.get() / 2));
    // One that is used gets time.
    guest.say(taken[1], "GET /a/b HTTP/1.1\r\n\r\n");
    assert_eq!(body(&guest.hear(taken[1])), "c");
    let wait = guest.endpoint.wait().expect("connections").get();
    assert_eq!(wait, PATIENCE.get() / 2);
    guest.wait(Nanos::new(wait));
    for (place, connection) in taken.iter().enumerate() {
        let state = guest.socket(*connection).state();
        let expected = if place == 1 {
            State::Established
        } else {
            State::Closed
        };
        assert_eq!(state, expected, "{place}");
    }
    let again = guest.connect();
    assert_eq!(guest.socket(again).state(), State::Established);
    // The last one goes, and there is nothing to wait for.
    guest.wait(PATIENCE);
    assert_eq!(guest.endpoint.wait(), None);
    let counters = &guest.counters;
    assert_eq!(counters.created.get(), counters.destroyed.get());
}

#[test]
fn half_closed_connection_is_answered() {
    let mut guest = small();
    let connection = guest.connect();
    let socket = guest.socket(connection);
    socket
        .send_slice(b"GET /a/b HTTP/1.1\r\n\r\n")
        .expect("open");
    socket.close();
    guest.settle();
    assert_eq!(body(&guest.hear(connection)), "c");
    assert_eq!(guest.socket(connection).state(), State::TimeWait);
    assert_eq!(guest.endpoint.wait(), None);
}

#[test]
fn what_is_no_request_is_answered_and_the_connection_closed() {
    let mut guest = small();
    let connection = guest.connect();
    guest.say(
        connection,
        "POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n123456789",
    );
    assert!(guest.hear(connection).starts_with("HTTP/1.1 405 "));
    // It is not looked at, and does not stand in the way of the end.
    guest.say(connection, &"x".repeat(8_000));
    assert_eq!(guest.socket(connection).state(), State::CloseWait);
    assert_eq!(guest.socket(connection).send_queue(), 0);
    guest.socket(connection).close();
    guest.settle();
    assert_eq!(guest.counters.destroyed.get(), 1);
    let expecting = guest.connect();
    let head = "PUT /latest/api/token HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n";
    guest.say(
        expecting,
        &format!("{head}X-metadata-token-ttl-seconds: 5\r\n\r\n"),
    );
    assert_eq!(guest.hear(expecting), "HTTP/1.1 100 Continue\r\n\r\n");
    guest.say(expecting, "x");
    assert!(guest.hear(expecting).starts_with("HTTP/1.1 200 "));
}

/// A guest behind whose card there are others, or that has the service behind its router.
#[test]
fn answer_goes_to_the_ethernet_address_that_asked() {
    let mut guest = small();
    let connection = guest.connect();
    guest
        .socket(connection)
        .send_slice(b"GET /a/b HTTP/1.1\r\n\r\n")
        .expect("open");
    guest.interface.poll(
        Instant::from_micros(1_000_001),
        &mut guest.card,
        &mut guest.sockets,
    );
    let mut frame = guest.card.outgoing.pop_front().expect("a segment");
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 7]);
    guest.send(&frame);
    let answers = guest.answers();
    assert!(!answers.is_empty());
    for answer in answers {
        assert_eq!(answer[..6], [2, 0, 0, 0, 0, 7]);
    }
}

#[test]
fn guest_that_takes_nothing_costs_a_bounded_number_of_frames() {
    let mut guest = Guest::new(json!({"a": "x".repeat(100_000)}), MmdsVersion::V1, 1_500);
    let connections: Vec<_> = (0..CONNECTIONS).map(|_| guest.connect()).collect();
    for connection in &connections {
        guest
            .socket(*connection)
            .send_slice(b"GET /a HTTP/1.1\r\n\r\n")
            .expect("open");
    }
    let at = Instant::from_micros(1_000_001);
    guest
        .interface
        .poll(at, &mut guest.card, &mut guest.sockets);
    while let Some(frame) = guest.card.outgoing.pop_front() {
        guest.send(&frame);
    }
    assert_eq!(guest.endpoint.wait(), Some(Nanos::new(1_000_000)));
    let mut answers = vec![String::new(); connections.len()];
    for _ in 0..1_000 {
        guest.wait(Nanos::new(5_000_000));
        for (answer, connection) in answers.iter_mut().zip(&connections) {
            *answer += &guest.hear(*connection);
        }
    }
    for answer in answers {
        assert_eq!(body(&answer).len(), 100_000);
    }
}
