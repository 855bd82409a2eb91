/**
 * A passphrase, asked for on a terminal without showing it, or read from a file. Never from an argument or a variable, which other
 * processes and logs can see.
 */
import { AgentError } from '../error.ts'
import type { Terminal } from './terminal.ts'
import { readText } from './text-input.ts'

/** As the API has it; a new one that is shorter would be guessed. */
const LENGTH_MIN = 8
const LENGTH_MAX = 1_024
/** Tries at a new one, before the command gives up. */
const TRIES_MAX = 3

export const PASSPHRASE_FILE = ['--passphrase-file <file>', 'the passphrase is the first line of this file'] as const

/** @throws {AgentError} `usage` */
export async function knownPassphrase(terminal: Terminal, file: string | undefined): Promise<string> {
  if (file !== undefined) return await passphraseIn(terminal, file)
  needSomebody(terminal)
  const passphrase = await terminal.ask('Passphrase:', { isSecret: true })
  if (passphrase === '') throw new AgentError('usage', 'no passphrase was given')
  return passphrase
}

/** Asks twice, since what was mistyped here would lock the key up for ever. @throws {AgentError} `usage` */
export async function newPassphrase(terminal: Terminal, file: string | undefined): Promise<string> {
  if (file !== undefined) return checked(await passphraseIn(terminal, file))
  needSomebody(terminal)
  for (let tries = 0; tries < TRIES_MAX; tries++) {
    const passphrase = await terminal.ask(`New passphrase (at least ${LENGTH_MIN} characters):`, { isSecret: true })
    if (passphrase.length < LENGTH_MIN) {
      terminal.note(`That has less than ${LENGTH_MIN} characters.`)
      continue
    }
    if (passphrase === (await terminal.ask('The same again:', { isSecret: true }))) return checked(passphrase)
    terminal.note('These two are not the same.')
  }
  throw new AgentError('usage', 'no passphrase was agreed on', { next: 'Nothing was changed: run the command again.' })
}

async function passphraseIn(terminal: Terminal, file: string): Promise<string> {
  const [first = ''] = (await readText(file, terminal, LENGTH_MAX * 4)).split(/\r?\n/)
  if (first !== '') return first
  throw new AgentError('usage', `the first line of ${file} is empty`, { next: 'It has to be the passphrase.' })
}

function checked(passphrase: string): string {
  if (passphrase.length >= LENGTH_MIN && passphrase.length <= LENGTH_MAX) return passphrase
  throw new AgentError('usage', `a passphrase has ${LENGTH_MIN} to ${LENGTH_MAX} characters`)
}

function needSomebody(terminal: Terminal): void {
  if (terminal.canAsk) return
  throw new AgentError('usage', 'a passphrase is needed, and there is no terminal to ask for it', {
    next: 'Give --passphrase-file FILE.',
  })
}
