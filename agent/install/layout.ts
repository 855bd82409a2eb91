/**
 * Where everything of the agent goes on a machine, and the text of what is small. In /usr/local and /etc, which are the administrator's: what
 * packages own is left to them.
 */

import { commentedConfig } from '../config/commented.ts'
import { SERVICE_CONFIG } from '../config/paths.ts'
import { SERVICE_NAME, serviceUnit, sysusersConf } from '../service/unit.ts'
import { YOUNG_HEAP_FLAG } from '../young-heap.ts'
import type { Wanted } from './change.ts'
import { MAIN, NODE, type Program } from './program.ts'
import type { Root } from './root.ts'

export const UNIT = `${SERVICE_NAME}.service`
export const SYSUSERS = `${SERVICE_NAME}.conf`
export const STATE_DIRECTORIES = [`/var/lib/${SERVICE_NAME}`, `/var/cache/${SERVICE_NAME}`]
export const PROGRAMS = `/usr/local/lib/${SERVICE_NAME}`
/** A link to the program that is used. */
const CURRENT = `${PROGRAMS}/current`
export const LAUNCHER = '/usr/local/bin/agent'
export const UNIT_FILE = `/etc/systemd/system/${UNIT}`
const COMPLETIONS = {
  bash: '/usr/local/share/bash-completion/completions/agent',
  zsh: '/usr/local/share/zsh/site-functions/_agent',
  fish: '/usr/local/share/fish/vendor_completions.d/agent.fish',
} as const
/** Where a machine has no program for it, its shell does it. */
const KILLS = ['/bin/kill', '/usr/bin/kill']
const KILL_OF_SHELL = `/bin/sh -c 'kill "$$@"' kill`

export type Shell = keyof typeof COMPLETIONS
export const SHELLS = Object.keys(COMPLETIONS) as Shell[]

type Given = { program: Program; root: Root; systemdVersion: number; completion: (shell: Shell) => string }

/** Everything of the agent itself, in the order in which it is put there: what is begun by others comes last. */
export function agentFiles({ program, root, systemdVersion, completion }: Given): Wanted[] {
  const node = `${CURRENT}/${NODE}`
  const bundle = `${CURRENT}/${MAIN}`
  const kill = KILLS.find((path) => root.stat(path) !== undefined) ?? KILL_OF_SHELL
  // The daemon would replace itself by a Node with the flag.
  const unit = serviceUnit({ program: [node, YOUNG_HEAP_FLAG, bundle], kill, systemdVersion })
  const part = 'agent'
  return [
    { kind: 'tree', part, path: `${PROGRAMS}/${program.id}`, program },
    { kind: 'link', part, path: CURRENT, target: program.id },
    { kind: 'file', part, path: LAUNCHER, text: launcher(node, bundle), mode: 0o755 },
    ...SHELLS.map((shell): Wanted => {
      return { kind: 'file', part, path: COMPLETIONS[shell], text: `${completion(shell)}\n`, mode: 0o644 }
    }),
    { kind: 'file', part, path: SERVICE_CONFIG, text: commentedConfig(), mode: 0o644, isYours: true },
    { kind: 'file', part, path: `/etc/sysusers.d/${SYSUSERS}`, text: sysusersConf(), mode: 0o644 },
    { kind: 'file', part, path: UNIT_FILE, text: unit, mode: 0o644 },
    // What `systemctl enable` makes, also where no systemd runs.
    { kind: 'link', part, path: `/etc/systemd/system/multi-user.target.wants/${UNIT}`, target: UNIT_FILE },
  ]
}

function launcher(node: string, bundle: string): string {
  return `#!/bin/sh
exec ${node} ${bundle} "$@"
`
}
