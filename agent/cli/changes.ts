/** What `agent install` and `agent uninstall` do to the machine, as lines: a file each, with all that changes in it where that was asked for. */

import type { Step } from '../install/change.ts'
import { difference } from '../install/difference.ts'
import type { Command } from '../install/machine.ts'
import type { Undoing } from '../install/undo.ts'
import { printable } from '../printable.ts'
import { count, showSize } from './measures.ts'

const DOES = {
  create: 'make',
  replace: 'replace',
  edit: 'change',
  remove: 'remove',
  restore: 'put back',
  keep: 'leave',
} as const
const DID = {
  create: 'made',
  replace: 'replaced',
  edit: 'changed',
  remove: 'removed',
  restore: 'put back',
  keep: 'left',
} as const
const WIDTH = 8

export type Shown = { action: keyof typeof DOES; path: string; note?: string; lines: string[] }

/** What changes; `same` is nothing to show. */
export function shownSteps(steps: readonly Step[]): Shown[] {
  return steps.flatMap(({ wanted, action, note, before = '', after = '' }): Shown[] => {
    if (action === 'same') return []
    const { path } = wanted
    if (wanted.kind === 'link') return [{ action, path: `${path} -> ${wanted.target}`, lines: [] }]
    if (wanted.kind === 'tree') {
      const { files, sizeBytes } = wanted.program
      return [{ action, path, note: `${count(files.length, 'file')}, ${showSize(sizeBytes)}`, lines: [] }]
    }
    const executable = wanted.kind === 'file' && wanted.mode === 0o755 ? 'executable' : undefined
    const said = note ?? executable
    return [{ action, path, ...(said && { note: said }), lines: difference(before, after) }]
  })
}

export function shownUndoing(undoing: readonly Undoing[]): Shown[] {
  return undoing.flatMap(({ entry, action, note, before = '', after = '' }): Shown[] =>
    action === 'gone' ? [] : [{ action, path: entry.path, ...(note && { note }), lines: difference(before, after) }],
  )
}

/** Before it is done, with every line. */
export function planLines(shown: readonly Shown[], commands: readonly Command[]): string[] {
  return [
    ...shown.flatMap(({ action, path, note, lines }) => [
      `${DOES[action].padEnd(WIDTH)} ${path}${note ? ` (${note})` : ''}`,
      ...lines.map((line) => `  ${printable(line.slice(0, 1)) || ' '} ${readable(line.slice(1))}`),
    ]),
    ...commands.map((command) => `${'run'.padEnd(WIDTH)} ${command.join(' ')}`),
  ]
}

/** After it was done. */
export function doneLine({ action, path, note }: Shown): string {
  return `${DID[action].padEnd(WIDTH)} ${path}${note ? ` (${note})` : ''}`
}

/** Indented as it is. */
function readable(line: string): string {
  return `${/^ */.exec(line)?.[0] ?? ''}${printable(line.trimStart())}`
}
