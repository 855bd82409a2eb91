#!/usr/bin/env node
/**
 * The program: loads the command line or the daemon, never both, and turns how that ended into an exit status.
 *
 * Compiled code is cached in a directory that only this user can write to: Node would execute what it finds there.
 */
import { enableCompileCache } from 'node:module'
import { homedir } from 'node:os'
import { join } from 'node:path'

const { CACHE_DIRECTORY, STATE_DIRECTORY, XDG_CACHE_HOME, HOME } = process.env
const cacheDirectory =
  CACHE_DIRECTORY || STATE_DIRECTORY || join(XDG_CACHE_HOME || join(HOME || homedir(), '.cache'), 'undernet')
enableCompileCache(join(cacheDirectory, 'compiled'))

const words = process.argv.slice(2)
const [{ CommandLine }, { watchOutput }] = await Promise.all([
  import('./cli/command-line.ts'),
  import('./cli/terminal.ts'),
])
watchOutput(process.stdout, process.stderr)
const isDaemon = words[0] === 'start'
const commands = isDaemon ? [(await import('./cli/start.ts')).addStart] : (await import('./cli/commands.ts')).commands
process.exitCode = await new CommandLine(commands).run(words)
// Everything of the daemon is closed by now; libraries keep timers that would hold the process for seconds more. A command's output may
// still be on its way, so a command ends by itself.
if (isDaemon) process.exit()
