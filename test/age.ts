/** The age tool (age-encryption.org), where it is installed: the second implementation that an exported root key is held against. */
import { spawn, spawnSync } from 'node:child_process'

/** Of util-linux: gives a command the terminal that age asks for the passphrase on. */
const TERMINAL = 'script'

export const hasAge = ['age', TERMINAL].every((command) => spawnSync(command, ['--version']).error === undefined)
if (!hasAge)
  console.warn(`SKIPPED: root keys against a second implementation: install age (and ${TERMINAL}, of util-linux)`)

/** Runs age on a terminal of its own, and answers each time that it asks for the passphrase. */
export async function runAge(args: string, passphrase: string): Promise<number | null> {
  const child = spawn(TERMINAL, ['-qec', `age ${args}`, '/dev/null'], { stdio: ['pipe', 'pipe', 'inherit'] })
  let answered = 0
  let shown = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    shown += text
    const asked = [...shown.matchAll(/passphrase[^\n]*: /gi)].length
    for (; answered < asked; answered++) child.stdin.write(`${passphrase}\n`)
  })
  const { promise, resolve } = Promise.withResolvers<number | null>()
  child.once('close', resolve)
  return promise
}
