//! The C library's allocator.
#![expect(
    unsafe_code,
    reason = "the C library's settings are changed by a call that has no safe form"
)]

/// Keeps all threads to one arena. Nothing on a hot path allocates; an arena for each thread would cost its pages,
/// and to give one back the C library reads a file of `/proc`, which seccomp filters do not allow.
pub(crate) fn use_one_arena() {
    // SAFETY: changes a number in the C library, before there is a second thread.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
