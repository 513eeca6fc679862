//! Threads that share the loops of a forward pass.
//!
//! A pass of a small model is some hundred loops of a few microseconds each: waking a sleeping thread for each of them would take
//! longer than the work. So the threads spin between loops and sleep where none comes for a while.

#[cfg(feature = "std")]
pub(crate) use threaded::Pool;

#[cfg(not(feature = "std"))]
use alloc::vec::Vec;

/// Without an operating system: every loop runs where it is called.
#[cfg(not(feature = "std"))]
#[derive(Debug)]
pub(crate) struct Pool;

#[cfg(not(feature = "std"))]
impl Pool {
    /// Calls `work` once with each item.
    pub(crate) fn for_each<T: Send>(&self, items: Vec<T>, work: &(dyn Fn(T) + Sync)) {
        items.into_iter().for_each(work);
    }

    /// Threads that compute.
    pub(crate) fn threads(&self) -> usize {
        1
    }
}

#[cfg(feature = "std")]
#[allow(unsafe_code)]
mod threaded {
    use std::cell::UnsafeCell;
    use std::mem::ManuallyDrop;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
    use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
    use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
    use std::thread::JoinHandle;

    /// How often a thread looks for work before it sleeps: some 50 µs, more than the pauses inside a pass.
    const SPINS: u32 = 4000;

    /// How often the caller looks whether the others are done before it lets other threads of the machine run.
    const SPINS_BEFORE_YIELD: u32 = 10_000;

    /// A task's number and the number of tasks take this many bits each of a ticket; the rest counts the loops.
    const TASK_BITS: u32 = 20;
    const MOST_TASKS: usize = (1 << TASK_BITS) - 1;

    /// Threads that run loops together with the one that calls.
    pub(crate) struct Pool {
        shared: Arc<Shared>,
        workers: Vec<JoinHandle<()>>,
        /// One loop at a time.
        turn: Mutex<()>,
    }

    /// Work of one loop, borrowed from the caller's stack for as long as the loop lasts.
    type Work = *const (dyn Fn(usize) + Sync);

    struct Items<T>(*const T);

    // SAFETY: items are moved to other threads one by one, which `T: Send` allows.
    unsafe impl<T: Send> Sync for Items<T> {}

    impl<T> Items<T> {
        fn at(&self, index: usize) -> *const T {
            self.0.wrapping_add(index)
        }
    }

    struct Shared {
        /// Loop, tasks in it, next task: see [`ticket`].
        ticket: AtomicU64,
        /// Tasks finished in this loop.
        finished: AtomicUsize,
        /// Written by the caller before its loop's ticket, read by whoever has claimed one of its tasks.
        work: UnsafeCell<Option<Work>>,
        panicked: AtomicBool,
        ends: AtomicBool,
        /// Threads that sleep or are about to.
        sleepers: AtomicUsize,
        bed: Mutex<()>,
        bell: Condvar,
    }

    // SAFETY: `work` is written by one caller at a time (`turn`), at a moment when every task of the loop before has finished, and
    // read only between the claim of a task and its end, which the caller waits for.
    unsafe impl Sync for Shared {}
    // SAFETY: the pointer in `work` is to a `Sync` closure.
    unsafe impl Send for Shared {}

    impl Pool {
        /// `threads` in all, the caller of [`Self::run`] among them.
        pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
            let shared = Arc::new(Shared {
                ticket: AtomicU64::new(0),
                finished: AtomicUsize::new(0),
                work: UnsafeCell::new(None),
                panicked: AtomicBool::new(false),
                ends: AtomicBool::new(false),
                sleepers: AtomicUsize::new(0),
                bed: Mutex::new(()),
                bell: Condvar::new(),
            });
            let mut pool = Self { shared, workers: Vec::new(), turn: Mutex::new(()) };
            for index in 1..threads {
                let shared = Arc::clone(&pool.shared);
                let worker = std::thread::Builder::new().name(format!("engine {index}")).spawn(move || shared.serve())?;
                pool.workers.push(worker);
            }
            Ok(pool)
        }

        /// Threads that compute.
        pub(crate) fn threads(&self) -> usize {
            self.workers.len() + 1
        }

        /// Calls `work` once with each item, on all threads, and returns when all calls have. `work` must not come back here.
        ///
        /// # Panics
        /// Where a call panics.
        pub(crate) fn for_each<T: Send>(&self, items: Vec<T>, work: &(dyn Fn(T) + Sync)) {
            if items.len() <= 1 || self.workers.is_empty() {
                return items.into_iter().for_each(work);
            }
            // What is left when all items have been moved out is an empty vector.
            let mut items = ManuallyDrop::new(items);
            let (len, items_pointer) = (items.len(), Items(items.as_ptr()));
            self.run(len, &|task| {
                // SAFETY: `run` calls with each number below `len` once, so each item is moved out once.
                work(unsafe { items_pointer.at(task).read() });
            });
            // SAFETY: no items are left.
            unsafe { items.set_len(0) };
            drop(ManuallyDrop::into_inner(items));
        }

        /// Calls `work` once with each number below `tasks`.
        fn run(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
            if tasks <= 1 || self.workers.is_empty() {
                return (0..tasks).for_each(work);
            }
            let _turn = lock(&self.turn);
            for first in (0..tasks).step_by(MOST_TASKS) {
                let here = MOST_TASKS.min(tasks - first);
                self.share(here, &|task| work(first + task));
            }
        }

        fn share(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
            let shared = &*self.shared;
            // SAFETY: only the lifetime changes; the loop below does not end before every call has returned.
            let work: Work = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Work>(work) };
            // SAFETY: see `Sync for Shared`; `turn` is held and the loop before has ended.
            unsafe { *shared.work.get() = Some(work) };
            shared.finished.store(0, Relaxed);
            let round = (shared.ticket.load(Relaxed) >> (2 * TASK_BITS)).wrapping_add(1);
            shared.ticket.store(ticket(round, tasks), SeqCst);
            if shared.sleepers.load(SeqCst) > 0 {
                drop(lock(&shared.bed));
                shared.bell.notify_all();
            }
            while shared.work_once() {}
            let mut spins = 0u32;
            while shared.finished.load(Acquire) < tasks {
                spins += 1;
                if spins > SPINS_BEFORE_YIELD { std::thread::yield_now() } else { std::hint::spin_loop() }
            }
            if shared.panicked.swap(false, Relaxed) {
                resume_unwind(Box::new("a task of the engine's loop panicked"));
            }
        }
    }

    /// Loop `round` with all its `tasks` still to be claimed.
    fn ticket(round: u64, tasks: usize) -> u64 {
        (round << (2 * TASK_BITS)) | ((tasks as u64) << TASK_BITS)
    }

    impl Shared {
        /// Claims a task and runs it; `false` where none is left.
        fn work_once(&self) -> bool {
            let mut current = self.ticket.load(Acquire);
            let mask = MOST_TASKS as u64;
            let task = loop {
                let (tasks, next) = ((current >> TASK_BITS) & mask, current & mask);
                if next >= tasks {
                    return false;
                }
                match self.ticket.compare_exchange_weak(current, current + 1, SeqCst, Acquire) {
                    Ok(_) => break next as usize,
                    Err(changed) => current = changed,
                }
            };
            // SAFETY: the task is claimed and not finished, so the caller of its loop waits and its closure lives. Whatever loop
            // the claim was for, the exchange saw that loop's ticket, which was stored after its `work`.
            let result =
                catch_unwind(AssertUnwindSafe(|| unsafe { (*(*self.work.get()).expect("written before the ticket"))(task) }));
            if let Err(thrown) = result {
                // The hook has said what it was. Dropping it could panic again, past the wait for the others.
                std::mem::forget(thrown);
                self.panicked.store(true, Relaxed);
            }
            self.finished.fetch_add(1, SeqCst);
            true
        }

        /// What a worker does until the pool ends.
        fn serve(&self) {
            let mut spins = 0;
            while !self.ends.load(Relaxed) {
                if self.work_once() {
                    spins = 0;
                } else if spins < SPINS {
                    spins += 1;
                    std::hint::spin_loop();
                } else {
                    self.sleep();
                    spins = 0;
                }
            }
        }

        fn sleep(&self) {
            let mut bed = lock(&self.bed);
            // Announced before the last look: a caller that stores a ticket after the look finds a sleeper and rings.
            self.sleepers.fetch_add(1, SeqCst);
            while !self.ends.load(SeqCst) && !self.has_work() {
                bed = self.bell.wait(bed).unwrap_or_else(PoisonError::into_inner);
            }
            self.sleepers.fetch_sub(1, SeqCst);
        }

        fn has_work(&self) -> bool {
            let current = self.ticket.load(SeqCst);
            let mask = MOST_TASKS as u64;
            current & mask < (current >> TASK_BITS) & mask
        }
    }

    impl Drop for Pool {
        fn drop(&mut self) {
            self.shared.ends.store(true, SeqCst);
            drop(lock(&self.shared.bed));
            self.shared.bell.notify_all();
            for worker in self.workers.drain(..) {
                // A worker catches what its tasks throw.
                let _ = worker.join();
            }
        }
    }

    impl std::fmt::Debug for Pool {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "Pool of {} threads", self.threads())
        }
    }

    /// Nothing that these locks guard can be left half done.
    fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn every_task_runs_once_in_every_loop() {
            for threads in [1, 2, 7] {
                let pool = Pool::new(threads).expect("threads start");
                for tasks in [0, 1, 2, 3, 50, 1000] {
                    let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                    for round in 1..200 {
                        pool.run(tasks, &|task| {
                            counts[task].fetch_add(1, Relaxed);
                        });
                        assert!(counts.iter().all(|count| count.load(Relaxed) == round), "{threads} threads, {tasks} tasks");
                    }
                }
            }
        }

        #[test]
        fn every_item_is_moved_to_one_call() {
            let pool = Pool::new(2).expect("threads start");
            let sum = AtomicUsize::new(0);
            let items: Vec<Box<usize>> = (0..100).map(Box::new).collect();
            pool.for_each(items, &|item| {
                sum.fetch_add(*item, Relaxed);
            });
            assert_eq!(sum.into_inner(), 4950);
        }

        #[test]
        fn more_tasks_than_a_ticket_counts() {
            let pool = Pool::new(2).expect("threads start");
            let (count, sum) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let tasks = MOST_TASKS + 5;
            pool.run(tasks, &|task| {
                count.fetch_add(1, Relaxed);
                sum.fetch_add(task, Relaxed);
            });
            assert_eq!((count.into_inner(), sum.into_inner()), (tasks, tasks * (tasks - 1) / 2));
        }

        #[test]
        fn sleeping_threads_wake_for_work() {
            let pool = Pool::new(3).expect("threads start");
            for _ in 0..5 {
                let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
                while pool.shared.sleepers.load(SeqCst) < 2 {
                    assert!(std::time::Instant::now() < deadline, "idle threads sleep");
                    std::thread::yield_now();
                }
                // Each task waits for the other two: all three threads must be there.
                let here = AtomicUsize::new(0);
                pool.run(3, &|_| {
                    here.fetch_add(1, SeqCst);
                    while here.load(SeqCst) < 3 {
                        std::thread::yield_now();
                    }
                });
            }
        }

        #[test]
        fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
            let pool = Pool::new(2).expect("threads start");
            let panicked = catch_unwind(AssertUnwindSafe(|| pool.run(8, &|task| assert!(task != 5, "task five"))));
            assert!(panicked.is_err());
            let count = AtomicUsize::new(0);
            pool.run(8, &|_| {
                count.fetch_add(1, Relaxed);
            });
            assert_eq!(count.into_inner(), 8);
        }

        #[test]
        fn callers_on_several_threads_take_turns() {
            let pool = Pool::new(2).expect("threads start");
            let count = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for _ in 0..100 {
                            pool.run(10, &|_| {
                                count.fetch_add(1, Relaxed);
                            });
                        }
                    });
                }
            });
            assert_eq!(count.into_inner(), 4000);
        }
    }
}
