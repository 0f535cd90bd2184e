//! Free pages that the driver names when it is asked.

use devices::virtio::Count;
use devices::virtio::balloon::{Command, Update};

use super::*;

const COMMAND: u64 = CONFIG + 8;
/// With statistics, as the specification counts and as Linux does.
const HINTS: usize = 3;
/// So many bytes are two pages.
const TWO: u32 = 2 * PAGE as u32;
const PAGES: u64 = ROOM + 0x1_0000;

fn hinting() -> (Balloons, Recorder, Arc<Told>) {
    let (mut driver, host, told) = ready(Options {
        hinting: true,
        statistics: Some(Nanos::new(1)),
        ..Options::default()
    });
    driver.queue = HINTS;
    (driver, host, told)
}

/// The command that the driver finds after this one, and whether it was told of it.
fn ask(driver: &mut Balloons, command: Command) -> (u32, bool) {
    driver.write(INTERRUPT_ACK, 3);
    driver
        .engine
        .change(|update: &mut Update| update.hinting = Some(command));
    driver.run();
    let is_told = driver.read(INTERRUPT_STATUS) & 2 != 0;
    (driver.read(COMMAND), is_told)
}

fn start(driver: &mut Balloons) -> u32 {
    let (run, is_told) = ask(
        driver,
        Command::Start {
            acknowledge_on_stop: false,
        },
    );
    assert!(run > 1 && is_told);
    run
}

fn put(driver: &mut Balloons, buffers: &[(u64, u32, bool)]) {
    driver.put(buffers);
    driver.run();
    assert_eq!(driver.used(), Some((0, 0)));
}

fn say(driver: &mut Balloons, run: u32) {
    driver.store(ROOM, run);
    put(driver, &[(ROOM, 4, false)]);
}

fn name(driver: &mut Balloons) {
    put(driver, &[(PAGES, TWO, true)]);
}

/// What is taken of the two pages that are named.
const TAKEN: [(u64, u64); 1] = [(PAGES / PAGE, 2)];

#[test]
fn pages_of_the_run_that_is_on_are_given_back() {
    let (mut driver, host, told) = hinting();
    let state = |told: &Told| (told.hinting.command(), told.hinting.said());
    assert_eq!((driver.read(COMMAND), state(&told)), (0, (0, None)));
    // Nobody asked, and the driver says nothing.
    name(&mut driver);
    let run = start(&mut driver);
    assert_eq!(state(&told), (run, None));
    name(&mut driver);
    // It repeats the number, or another one.
    for (said, taken) in [(run - 1, false), (run, true), (run + 1, false), (1, false)] {
        say(&mut driver, said);
        assert_eq!(state(&told), (run, Some(said)));
        name(&mut driver);
        assert_eq!(host.given() == TAKEN, taken, "{said}");
    }
    // The next run has another number.
    say(&mut driver, run);
    let next = start(&mut driver);
    assert_ne!(next, run);
    name(&mut driver);
    assert_eq!(host.given(), []);
    say(&mut driver, next);
    name(&mut driver);
    assert_eq!(host.given(), TAKEN);
    let counts = [&told.hints, &told.hinted, &told.hint_failures].map(Count::get);
    assert_eq!(counts, [8, 2 * u64::from(TWO), 0]);
}

#[test]
fn end_of_a_run_is_acknowledged_if_that_was_asked_for() {
    for acknowledge_on_stop in [false, true] {
        let (mut driver, host, told) = hinting();
        let command = Command::Start {
            acknowledge_on_stop,
        };
        let (run, _) = ask(&mut driver, command);
        // An end before the begin is none.
        say(&mut driver, 0);
        assert_eq!(driver.read(COMMAND), run);
        say(&mut driver, run);
        name(&mut driver);
        assert_eq!(host.given(), TAKEN);
        driver.write(INTERRUPT_ACK, 3);
        say(&mut driver, 0);
        let now = if acknowledge_on_stop { 1 } else { run };
        assert_eq!(driver.read(COMMAND), now);
        assert_eq!(
            driver.read(INTERRUPT_STATUS) & 2 != 0,
            acknowledge_on_stop,
            "told of the command"
        );
        assert_eq!(
            (told.hinting.command(), told.hinting.said()),
            (now, Some(0))
        );
        // What comes late may be in use again.
        name(&mut driver);
        assert_eq!(host.given(), []);
    }
}

#[test]
fn pages_that_come_after_a_stop_are_kept() {
    let (mut driver, host, _) = hinting();
    let run = start(&mut driver);
    say(&mut driver, run);
    assert_eq!(ask(&mut driver, Command::Stop), (1, true));
    for said in [None, Some(run), Some(1), Some(0)] {
        if let Some(said) = said {
            say(&mut driver, said);
        }
        name(&mut driver);
        assert_eq!(host.given(), [], "{said:?}");
    }
    // Told twice, it is no news.
    assert_eq!(ask(&mut driver, Command::Stop), (1, false));
}

#[test]
fn hints_that_make_no_sense_take_nothing_but_whole_pages() {
    let (mut driver, host, told) = hinting();
    let run = start(&mut driver);
    driver.store(ROOM, run);
    for len in [1, 3, 5, 8, 4_096] {
        put(&mut driver, &[(ROOM, len, false)]);
        name(&mut driver);
        assert_eq!(host.given(), [], "{len}");
    }
    // A number and pages at once; parts of pages.
    put(&mut driver, &[(ROOM, 4, false), (PAGES, TWO, true)]);
    assert_eq!(host.given(), TAKEN);
    put(&mut driver, &[(PAGES + 1, TWO, true)]);
    assert_eq!(host.given(), [(PAGES / PAGE + 1, 1)]);
    host.0.lock().unwrap().fails = true;
    name(&mut driver);
    assert_eq!(told.hint_failures.get(), 1);
    driver.put(&[(HOLE, TWO, true)]);
    driver.run();
    assert_ne!(driver.read(STATUS) & NEEDS_RESET, 0);
}

#[test]
fn poisoned_pages_are_kept() {
    let (mut driver, host, _) = hinting();
    driver.write(POISON_VALUE, 0xaaaa_aaaa);
    let run = start(&mut driver);
    say(&mut driver, run);
    name(&mut driver);
    assert_eq!(host.given(), []);
}

#[test]
fn driver_that_comes_anew_has_named_nothing() {
    let (mut driver, host, told) = hinting();
    let run = start(&mut driver);
    say(&mut driver, run);
    driver.reset();
    assert_eq!(driver.read(COMMAND), 0);
    assert_eq!((told.hinting.command(), told.hinting.said()), (0, None));
    driver.negotiate(VERSION_1 | HINTING | STATISTICS);
    for queue in 0..5 {
        driver.queue = queue;
        driver.set_up_queue();
    }
    driver.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    driver.queue = HINTS;
    say(&mut driver, run);
    name(&mut driver);
    assert_eq!(host.given(), []);
    assert!(start(&mut driver) > run);
}

#[test]
fn balloon_without_hinting_is_not_asked() {
    let (mut driver, ..) = ready(Options::default());
    let start = Command::Start {
        acknowledge_on_stop: true,
    };
    assert_eq!(ask(&mut driver, start), (0, false));
}

/// Linux counts the queues that there are, and the specification all.
#[test]
fn hints_are_found_in_the_queue_of_either_number() {
    for (queues, hints) in [(&[0, 1, 2][..], 2), (&[0, 1, 3][..], 3)] {
        let options = Options {
            hinting: true,
            ..Options::default()
        };
        let host = Recorder::default();
        let device = Balloon::new(host.clone(), options, Box::new(|_| {}));
        let mut driver = Driver::new(device);
        driver.negotiate(VERSION_1 | HINTING);
        for queue in queues {
            driver.queue = *queue;
            driver.set_up_queue();
        }
        driver.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        driver.queue = hints;
        let run = start(&mut driver);
        say(&mut driver, run);
        name(&mut driver);
        assert_eq!(host.given(), TAKEN, "{queues:?}");
    }
}
