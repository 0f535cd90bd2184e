//! The rules of the seccomp filters, read as they are written.

use std::collections::BTreeMap;

use serde_json::Value;

const RULES: &str = include_str!("../../seccomp/x86_64.json");

/// The filters by their names.
pub(crate) fn rules() -> Value {
    serde_json::from_str(RULES).expect("JSON")
}

/// The numbers of the calls that have rules, from the C library's headers.
pub(crate) fn numbers() -> BTreeMap<&'static str, i64> {
    macro_rules! numbers {
        ($($name:ident = $number:ident,)*) => {
            BTreeMap::from([$((stringify!($name), libc::$number)),*])
        };
    }
    numbers! {
        accept4 = SYS_accept4, brk = SYS_brk, clock_adjtime = SYS_clock_adjtime, clock_gettime = SYS_clock_gettime, clone = SYS_clone,
        clone3 = SYS_clone3, close = SYS_close, connect = SYS_connect, epoll_create1 = SYS_epoll_create1, epoll_ctl = SYS_epoll_ctl,
        epoll_pwait = SYS_epoll_pwait, epoll_wait = SYS_epoll_wait, exit = SYS_exit,
        exit_group = SYS_exit_group, fallocate = SYS_fallocate, fcntl = SYS_fcntl, fdatasync = SYS_fdatasync, flock = SYS_flock,
        fstat = SYS_fstat, ftruncate = SYS_ftruncate, futex = SYS_futex, getcpu = SYS_getcpu,
        geteuid = SYS_geteuid, getpid = SYS_getpid, getrandom = SYS_getrandom, gettid = SYS_gettid,
        io_uring_enter = SYS_io_uring_enter, io_uring_register = SYS_io_uring_register,
        ioctl = SYS_ioctl, lseek = SYS_lseek, madvise = SYS_madvise, memfd_create = SYS_memfd_create,
        mkdirat = SYS_mkdirat, mmap = SYS_mmap, mprotect = SYS_mprotect, mremap = SYS_mremap,
        munmap = SYS_munmap, newfstatat = SYS_newfstatat, open = SYS_open, openat = SYS_openat,
        ppoll = SYS_ppoll, prctl = SYS_prctl, read = SYS_read, readv = SYS_readv,
        recvfrom = SYS_recvfrom, rename = SYS_rename, renameat = SYS_renameat,
        restart_syscall = SYS_restart_syscall, rseq = SYS_rseq, rt_sigaction = SYS_rt_sigaction,
        rt_sigprocmask = SYS_rt_sigprocmask, rt_sigreturn = SYS_rt_sigreturn,
        sched_getaffinity = SYS_sched_getaffinity, sched_setaffinity = SYS_sched_setaffinity,
        sched_yield = SYS_sched_yield, sendto = SYS_sendto, set_robust_list = SYS_set_robust_list,
        shutdown = SYS_shutdown, sigaltstack = SYS_sigaltstack, socket = SYS_socket, statx = SYS_statx, tgkill = SYS_tgkill,
        timerfd_settime = SYS_timerfd_settime, unlink = SYS_unlink, unlinkat = SYS_unlinkat,
        write = SYS_write, writev = SYS_writev,
    }
}

/// A condition of a rule: which argument, the bits that are compared, and with what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Condition {
    pub(crate) argument: usize,
    mask: u32,
    pub(crate) value: u32,
}

impl Condition {
    pub(crate) fn read(condition: &Value) -> Self {
        let number =
            |value: &Value| u32::try_from(value.as_u64().expect("a number")).expect("32 bits");
        assert_eq!(condition["type"], "dword", "{condition}");
        let mask = match &condition["op"] {
            Value::String(op) if op == "eq" => u32::MAX,
            op => number(&op["masked_eq"]),
        };
        Self {
            argument: usize::try_from(number(&condition["index"])).expect("small"),
            mask,
            value: number(&condition["val"]),
        }
    }

    pub(crate) fn holds(self, arguments: &[u64; 6]) -> bool {
        let [low, ..] = [arguments[self.argument] & 0xffff_ffff];
        u32::try_from(low).expect("32 bits") & self.mask == self.value
    }
}

/// The rules of one filter: for each call, the conditions of which one set must hold.
pub(crate) fn allowed(filter: &Value) -> BTreeMap<i64, Vec<Vec<Condition>>> {
    let numbers = numbers();
    let mut allowed: BTreeMap<i64, Vec<Vec<Condition>>> = BTreeMap::new();
    for rule in filter["filter"].as_array().expect("rules") {
        let name = rule["syscall"].as_str().expect("a name");
        let conditions = match &rule["args"] {
            Value::Null => Vec::new(),
            list => (list.as_array().expect("conditions").iter())
                .map(Condition::read)
                .collect(),
        };
        let number = numbers
            .get(name)
            .unwrap_or_else(|| panic!("{name}: which number?"));
        allowed.entry(*number).or_default().push(conditions);
    }
    allowed
}
