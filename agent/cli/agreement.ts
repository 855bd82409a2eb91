/** Asking before what cannot be taken back. */
import { AgentError } from '../error.ts'
import type { Session } from './command-line.ts'

/** Asks, where somebody can answer; a script that runs the command has decided. @throws {AgentError} `cancelled` */
export async function agreed(
  { terminal }: Pick<Session, 'terminal'>,
  isSettled: boolean,
  question: string,
): Promise<void> {
  if (isSettled || !terminal.canAsk || (await terminal.confirm(question))) return
  throw new AgentError('cancelled', 'nothing was changed')
}
