/** What tests of the API do again and again: ask on a socket, expect a failure, gather what comes. */
import { Client } from '../../../agent/api/client.ts'
import { AgentError } from '../../../agent/error.ts'

export const clientOf = (...sockets: string[]) => new Client(async () => sockets)
export const never = new AbortController().signal

export async function failure(work: Promise<unknown>): Promise<AgentError> {
  try {
    await work
  } catch (error) {
    if (error instanceof AgentError) return error
    throw error
  }
  throw new Error('it succeeded')
}

export async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const list: T[] = []
  for await (const item of items) list.push(item)
  return list
}
