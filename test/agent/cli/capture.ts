/** Runs the command line in this process, with a terminal of a given size or a pipe, and keeps what it prints. */
import { Writable } from 'node:stream'
import { stripVTControlCharacters } from 'node:util'
import { CommandLine } from '../../../agent/cli/command-line.ts'
import { commands } from '../../../agent/cli/commands.ts'
import { type Output, Terminal } from '../../../agent/cli/terminal.ts'

export class Captured extends Writable {
  text = ''
  readonly isTTY: boolean
  readonly columns: number

  /** Without columns it is a pipe. */
  constructor(columns?: number) {
    super()
    this.isTTY = columns !== undefined
    this.columns = columns ?? 0
  }

  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    this.text += chunk.toString()
    done()
  }
}

/** Runs `agent WORDS`, asking the agent on `socket`. */
export async function run(words: string[], { socket, columns }: { socket?: string; columns?: number } = {}) {
  const out = new Captured(columns)
  const err = new Captured(columns)
  const asked = socket === undefined ? words : [...words, '--socket', socket]
  const line = new CommandLine(commands, new Terminal(out as Output, err as Output))
  const status = await line.run(asked)
  return { status, out: out.text, err: err.text }
}

/** A terminal's text as somebody reads it: without colours, and a line that was redrawn as it was last. */
export function plain(text: string): string {
  return stripVTControlCharacters(text).replace(/[^\n]*\r/g, '')
}
