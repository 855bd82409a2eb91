#!/usr/bin/env node
/**
 * The program: loads the command line or the daemon, never both, and turns how that ended into an exit status.
 */
import { statSync } from 'node:fs'
import { enableCompileCache, flushCompileCache } from 'node:module'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { letHeapGrow } from './heap-growth.ts'
import { limitYoungHeap } from './young-heap.ts'

/** After a start: what it needed is compiled, and V8 has not dropped it again. */
const CACHED_AFTER_MS = 10_000

const words = process.argv.slice(2)
const isDaemon = words[0] === 'start'
if (isDaemon) {
  limitYoungHeap()
  letHeapGrow()
}
cacheCompiledCode()
// Node itself does so at the exit, to which a daemon comes late, without the code of its start, or never.
if (isDaemon) setTimeout(flushCompileCache, CACHED_AFTER_MS).unref()
const [{ CommandLine }, { watchOutput }] = await Promise.all([
  import('./cli/command-line.ts'),
  import('./cli/terminal.ts'),
])
watchOutput(process.stdout, process.stderr)
const commands = isDaemon ? [(await import('./cli/start.ts')).addStart] : (await import('./cli/commands.ts')).commands
const status = await new CommandLine(commands).run(words)
// A result that could not be written has set it already.
process.exitCode ||= status
// Everything of the daemon is closed by now; libraries keep timers that would hold the process for seconds more. A command's output may
// still be on its way, so a command ends by itself.
if (isDaemon) process.exit()

/**
 * Halves the time to start. Node runs what it finds in the cache, so it is kept only where nobody but this user can write: not in /tmp,
 * Node's choice, and not in the home of the one who ran sudo.
 */
function cacheCompiledCode(): void {
  const { CACHE_DIRECTORY, STATE_DIRECTORY, XDG_CACHE_HOME } = process.env
  const owned = CACHE_DIRECTORY || STATE_DIRECTORY || XDG_CACHE_HOME || homedir()
  const below = owned === homedir() ? ['.cache', 'undernet', 'compiled'] : ['undernet', 'compiled']
  const stats = statSync(owned, { throwIfNoEntry: false })
  const isOurs = stats?.uid === process.geteuid?.() && stats !== undefined && (stats.mode & 0o022) === 0
  if (isOurs) enableCompileCache(join(owned, ...below))
}
