package disk

// GoProcs returns how many threads should run Go code (runtime.GOMAXPROCS) in a process that uses the engine on n processors. A
// thread that waits for the disks in a system call keeps its turn until the runtime notices, tens of microseconds to 10 ms later; with as
// many turns as processors, the writers' waits leave processors idle. On two processors more than two turns
// helped small writes; which number is best was within the noise (docs/benchmarks.md).
func GoProcs(n int) int { return n + 2*packedWriters }
