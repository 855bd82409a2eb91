/** Preloaded into an agent (`--import`): its clock is five minutes ahead, as Date tells it. */
const AHEAD_MS = 5 * 60_000
const now = Date.now
Date.now = () => now() + AHEAD_MS
