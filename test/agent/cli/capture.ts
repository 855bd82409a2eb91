/** Runs the command line in this process, with a terminal of a given size or a pipe, and keeps what it prints. */
import { PassThrough, Readable, Writable } from 'node:stream'
import { stripVTControlCharacters } from 'node:util'
import { CommandLine } from '../../../agent/cli/command-line.ts'
import { commands } from '../../../agent/cli/commands.ts'
import { type Input, type Output, Terminal } from '../../../agent/cli/terminal.ts'

export class Captured extends Writable {
  text = ''
  onText: (text: string) => void = () => undefined
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
    this.onText(this.text)
  }
}

/** Somebody at a terminal who answers each question that is put to `screen`; without more answers they press Ctrl-D. */
class Person extends PassThrough {
  readonly isTTY = true
  /** Whether the terminal was told not to show what is typed. */
  isRaw = false

  constructor(screen: Captured, answers: readonly string[]) {
    super()
    const left = [...answers]
    screen.onText = (text) => {
      if (!/[:\]] $/.test(stripVTControlCharacters(text))) return
      const answer = left.shift()
      // The question is on the screen before anybody listens for its answer.
      setImmediate(() => this.write(answer === undefined ? '\x04' : `${answer}\r`))
    }
  }

  setRawMode(isRaw: boolean): this {
    this.isRaw = isRaw
    return this
  }
}

export type Surroundings = {
  socket?: string
  columns?: number
  /** What a person types, question by question. */
  answers?: readonly string[]
  /** What a pipe brings, when nobody types. */
  input?: string
}

/** Runs `agent WORDS`, asking the agent on `socket`. */
export async function run(words: string[], { socket, columns, answers, input = '' }: Surroundings = {}) {
  const out = new Captured(columns)
  const err = new Captured(columns ?? (answers && 80))
  const asked = socket === undefined ? words : [...words, '--socket', socket]
  const typed: Input = answers === undefined ? Readable.from([Buffer.from(input)]) : new Person(err, answers)
  const line = new CommandLine(commands, new Terminal(out as Output, err as Output, typed))
  const status = await line.run(asked)
  return { status, out: out.text, err: err.text }
}

/** A terminal's text as somebody reads it: without colours, and a line that was redrawn as it was last. */
export function plain(text: string): string {
  return stripVTControlCharacters(text).replace(/[^\n]*\r(?!\n)/g, '')
}
