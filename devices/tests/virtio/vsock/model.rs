//! Whole lives of a connection, drawn at random, under a guest that keeps to the rules.

use proptest::prelude::*;

use super::*;

/// What happens next in a life of a connection.
#[derive(Clone, Debug)]
enum Step {
    GuestSends(usize),
    GuestTakes(usize),
    GuestGives(usize),
    ProgramSends(usize),
    ProgramTakes(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1_usize..20_000).prop_map(Step::GuestSends),
        (1_usize..20_000).prop_map(Step::GuestTakes),
        (1_usize..16).prop_map(Step::GuestGives),
        (1_usize..20_000).prop_map(Step::ProgramSends),
        (1_usize..20_000).prop_map(Step::ProgramTakes),
    ]
}

/// A guest that keeps to the rules, and sees whether the device does.
struct Careful {
    guest: Guest,
    program: Program,
    room: u32,
    /// What the guest has sent, and knows of the device's room.
    sent: usize,
    free_until: usize,
    /// What it has received and passed on, and what the device knows of that.
    received: usize,
    passed: usize,
    told: usize,
    /// What the program has sent and taken.
    program_sent: usize,
    program_took: usize,
    buffers: VecDeque<u16>,
}

impl Careful {
    fn new(room: u32, program_room: usize) -> Self {
        let mut guest = Guest::without_buffers();
        guest.give(0);
        guest.outside.listen(80);
        guest.send(&Packet::new(1_000, 80, REQUEST).credit(room, 0));
        guest.driver.queue = RX;
        assert_eq!(guest.driver.used(), Some((0, 44)));
        let program = guest.outside.connected().expect("connected").1;
        program.change(|link| link.room = program_room);
        Self {
            guest,
            program,
            room,
            sent: 0,
            free_until: ROOM_OF_DEVICE as usize,
            received: 0,
            passed: 0,
            told: 0,
            program_sent: 0,
            program_took: 0,
            buffers: (0..16).collect(),
        }
    }

    /// Takes what is in buffers, and leaves them empty.
    fn look(&mut self) {
        self.guest.run();
        self.guest.driver.queue = RX;
        while let Some((head, len)) = self.guest.driver.used() {
            self.buffers.push_back(head as u16);
            let address = ROOM + u64::from(head) * BUFFER;
            let packet = Packet::parse(&self.guest.driver.bytes(address, len as usize));
            assert!(
                [RW, CREDIT_UPDATE, CREDIT_REQUEST].contains(&packet.op),
                "{packet:?}"
            );
            assert_eq!(packet.payload, pattern(self.received, packet.payload.len()));
            self.received += packet.payload.len();
            assert!(
                self.received <= self.told + self.room as usize,
                "beyond its credit"
            );
            // The device never takes room back, and has passed on what it says.
            let free_until = (packet.room + packet.passed) as usize;
            assert!(free_until >= self.free_until);
            self.free_until = free_until;
            let at_program = self.program.change(|link| link.to_program.len());
            assert!(packet.passed as usize <= self.program_took + at_program);
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::GuestSends(most) => {
                let len = most.min(self.free_until - self.sent);
                let packet = Packet::new(1_000, 80, RW).with(&pattern(self.sent, len));
                self.told = self.passed;
                let packet = packet.credit(self.room, self.passed as u32);
                self.guest.send(&packet);
                self.sent += len;
            }
            Step::GuestTakes(most) => {
                self.passed += most.min(self.received - self.passed);
                self.told = self.passed;
                let packet = Packet::new(1_000, 80, CREDIT_UPDATE);
                self.guest
                    .send(&packet.credit(self.room, self.passed as u32));
            }
            Step::GuestGives(count) => {
                for _ in 0..count {
                    if let Some(head) = self.buffers.pop_front() {
                        self.guest.give(head);
                    }
                }
            }
            Step::ProgramSends(len) => {
                self.program.send(&pattern(self.program_sent, len));
                self.program_sent += len;
            }
            Step::ProgramTakes(most) => {
                let bytes = self.program.take(most);
                assert_eq!(bytes, pattern(self.program_took, bytes.len()));
                self.program_took += bytes.len();
            }
        }
        self.look();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// Bytes arrive in their order, none is lost, and neither side gets more than it has room for.
    #[test]
    fn flow_is_controlled_both_ways(
        room in 100_u32..100_000,
        program_room in 100_usize..100_000,
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut life = Careful::new(room, program_room);
        for step in &steps {
            life.step(step);
        }
        // Who goes on gets everything there is: nobody waits for an event that was.
        let moved = |life: &Careful| (life.received, life.program_took);
        let mut before = None;
        while before != Some(moved(&life)) {
            before = Some(moved(&life));
            for step in [Step::GuestGives(16), Step::GuestTakes(usize::MAX), Step::ProgramTakes(usize::MAX)] {
                life.step(&step);
            }
        }
        prop_assert_eq!(life.received, life.program_sent);
        prop_assert_eq!(life.program_took, life.sent);
        prop_assert!(life.guest.is_well());
    }
}
