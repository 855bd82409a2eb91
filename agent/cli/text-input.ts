/** Text that a command takes from a file or from standard input: a token, a policy, a key. */
import { open } from 'node:fs/promises'
import { AgentError } from '../error.ts'
import type { Terminal } from './terminal.ts'

/** All of a file; `-` is standard input. @throws {AgentError} `usage` beyond `bytesMax`; errors of the file system as they are */
export async function readText(path: string, terminal: Pick<Terminal, 'input'>, bytesMax: number): Promise<string> {
  if (path === '-') return await gather(terminal.input, 'standard input', bytesMax)
  await using file = await open(path, 'r')
  return await gather(file.createReadStream({ autoClose: false }), path, bytesMax)
}

async function gather(stream: AsyncIterable<unknown>, what: string, bytesMax: number): Promise<string> {
  const chunks: Uint8Array[] = []
  let sizeBytes = 0
  for await (const chunk of stream) {
    const bytes = typeof chunk === 'string' ? Buffer.from(chunk) : (chunk as Uint8Array)
    sizeBytes += bytes.byteLength
    if (sizeBytes > bytesMax)
      throw new AgentError('usage', `${what} is larger than ${bytesMax} bytes: it cannot be what is wanted`)
    chunks.push(bytes)
  }
  return Buffer.concat(chunks).toString('utf8')
}
