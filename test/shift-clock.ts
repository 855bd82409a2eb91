/** Preloaded into an agent (`--import`): its clock is ahead, as Date tells it; five minutes, or SHIFT_CLOCK_MS. */
const aheadMs = Number(process.env.SHIFT_CLOCK_MS ?? 5 * 60_000)
const now = Date.now
Date.now = () => now() + aheadMs
