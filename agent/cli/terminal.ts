/**
 * What a command prints on: results on standard output, everything else on standard error. Colours only on a terminal (and as NO_COLOR
 * and FORCE_COLOR wish), and no more output once the reader has gone (`agent search | head -1`). What it asks, it asks on standard error
 * too, and only when somebody sits there.
 */
import { type Readable, Writable } from 'node:stream'
import { styleText } from 'node:util'
import { AgentError } from '../error.ts'
import { printable, printableJson } from '../printable.ts'
import { Interrupted } from './interruption.ts'

export type Style = Parameters<typeof styleText>[0]
export type Output = Writable & { isTTY?: boolean; columns?: number }
export type Input = Readable & { isTTY?: boolean }

export class Terminal {
  readonly #out: Output
  readonly #err: Output
  readonly #input: Input | undefined
  readonly #hasColours: boolean
  readonly #errHasColours: boolean

  constructor(out: Output = process.stdout, err: Output = process.stderr, input?: Input) {
    this.#out = out
    this.#err = err
    this.#input = input
    this.#hasColours = hasColours(out)
    this.#errHasColours = hasColours(err)
  }

  /** Of standard output; undefined when that is no terminal: then nothing needs to fit. A terminal that nobody gave a size says 0. */
  get columns(): number | undefined {
    return (this.#out.isTTY && this.#out.columns) || undefined
  }

  /** Somebody looks at standard output. */
  get isInteractive(): boolean {
    return this.#out.isTTY === true
  }

  /** Standard input; opened only when it is used. */
  get input(): Input {
    return this.#input ?? process.stdin
  }

  /** Somebody sees questions, and can answer. */
  get canAsk(): boolean {
    return this.#err.isTTY === true && this.input.isTTY === true
  }

  /** Where progress can be drawn; undefined when nobody looks. */
  get progressOutput(): Output | undefined {
    return this.#err.isTTY ? this.#err : undefined
  }

  style(style: Style, text: string): string {
    return this.#hasColours ? styleText(style, text, { validateStream: false }) : text
  }

  styleNote(style: Style, text: string): string {
    return this.#errHasColours ? styleText(style, text, { validateStream: false }) : text
  }

  /** Prints lines of the result. Whoever calls has cleaned what peers wrote. */
  print(...lines: string[]): void {
    if (lines.length > 0) write(this.#out, `${lines.join('\n')}\n`)
  }

  json(value: unknown): void {
    this.print(printableJson(value, 2))
  }

  /**
   * Asks for a line; what is typed is not shown when it is a secret.
   *
   * @throws {Interrupted} on Ctrl-C
   * @throws {AgentError} `usage` when the input ends instead
   */
  async ask(question: string, { isSecret = false } = {}): Promise<string> {
    const { createInterface } = process.getBuiltinModule('node:readline')
    const output = isSecret ? new Writable({ write: (_chunk, _encoding, done) => done() }) : this.#err
    const lines = createInterface({ input: this.input, output, terminal: true, historySize: 0 })
    const prompt = `${printable(question).trimEnd()} `
    if (isSecret) write(this.#err, prompt)
    let isAnswered = false
    try {
      const answer = await new Promise<string>((resolve, reject) => {
        lines.once('SIGINT', () => reject(new Interrupted()))
        lines.once('close', () => reject(new AgentError('usage', 'the input ended without an answer')))
        lines.question(isSecret ? '' : prompt, resolve)
      })
      isAnswered = true
      return answer
    } finally {
      lines.close()
      // What is said next begins on a line of its own.
      if (isSecret || !isAnswered) write(this.#err, '\n')
    }
  }

  /** Asks whether to go on: only a plain yes is one. */
  async confirm(question: string): Promise<boolean> {
    return /^y(es)?$/i.test((await this.ask(`${question} [y/N]`)).trim())
  }

  /** Says something beside the result. */
  note(...lines: string[]): void {
    if (lines.length > 0) write(this.#err, `${lines.join('\n')}\n`)
  }
}

/** After this, a reader that closes its pipe is no error, and one that cannot store what it gets is. */
export function watchOutput(...outputs: Output[]): void {
  for (const output of outputs)
    output.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EPIPE') return
      process.exitCode = 1
      if (output !== process.stderr) process.stderr.write(`agent: cannot write the result: ${error.message}\n`)
    })
}

function hasColours(output: Output): boolean {
  return styleText('red', 'x', { stream: output }) !== 'x'
}

function write(output: Output, text: string): void {
  if (!output.destroyed && output.writable) output.write(text)
}
