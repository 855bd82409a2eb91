/** Large bodies out of a file: every byte as it is, and none more when something breaks. */
import { randomBytes } from 'node:crypto'
import { connect } from 'node:net'
import { pino } from 'pino'
import { afterEach, expect, it } from 'vitest'
import { type Readable, sendBytes } from '../../../agent/http/sending.ts'
import { HttpServer } from '../../../agent/http/server.ts'
import { until } from '../../agents.ts'

const BUFFER_BYTES = 256 * 1024
const bytes = randomBytes(4 * BUFFER_BYTES + 7)
const whole: Readable = {
  readInto: async (buffer, offset) => {
    buffer.set(bytes.subarray(offset, offset + buffer.byteLength))
  },
}
let server: HttpServer | undefined
afterEach(async () => server?.[Symbol.asyncDispose]())

/** Answers `/FROM-TO` with those bytes; what sending ended with is kept. */
async function serve(source: Readable): Promise<{ url: string; ends: string[] }> {
  const ends: string[] = []
  server = await HttpServer.start(
    { host: '127.0.0.1', port: 0 },
    (app) =>
      app.get<{ Params: { range: string } }>('/:range', async ({ params: { range } }, reply) => {
        const [from = 0, to = 0] = range.split('-').map(Number)
        const hangUp = new AbortController()
        reply.raw.once('close', () => hangUp.abort(new Error('gone')))
        reply.header('content-length', to - from)
        const sending = sendBytes(reply, source, { offset: from, length: to - from }, hangUp.signal)
        ends.push(await sending.then(() => 'sent', String))
        return reply
      }),
    pino({ level: 'silent' }),
  )
  return { url: server.url, ends }
}

it('sends any part', async () => {
  const { url, ends } = await serve(whole)
  const parts = [0, 1, BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + 1, 2 * BUFFER_BYTES, bytes.byteLength]
  for (const from of [0, 5, BUFFER_BYTES]) {
    for (const to of parts.filter((end) => end >= from)) {
      const answer = Buffer.from(await (await fetch(`${url}/${from}-${to}`)).arrayBuffer())
      expect([from, to, answer.equals(bytes.subarray(from, to))]).toEqual([from, to, true])
    }
  }
  expect(new Set(ends)).toEqual(new Set(['sent']))
})

it('cuts the connection when the file cannot be read, so that nobody takes a part for the whole', async () => {
  const broken: Readable = {
    readInto: async (buffer, offset) => {
      if (offset > 0) throw new Error('the disk is gone')
      await whole.readInto(buffer, offset)
    },
  }
  const { url, ends } = await serve(broken)
  await expect(fetch(`${url}/0-${bytes.byteLength}`).then((answer) => answer.arrayBuffer())).rejects.toThrow()
  await until(() => ends.length === 1, { what: 'it ended' })
  expect(ends).toEqual(['Error: the disk is gone'])
})

it('ends when the requester goes away, or reads nothing and then goes away', async () => {
  let read = 0
  const endless: Readable = {
    readInto: async (buffer) => {
      read += buffer.byteLength
    },
  }
  const { url, ends } = await serve(endless)
  const { hostname, port } = new URL(url)
  const idle = connect(Number(port), hostname)
  idle.pause()
  idle.write('GET /0-1000000000000 HTTP/1.1\r\nhost: localhost\r\n\r\n')
  await until(() => read > 0, { what: 'it is under way' })
  idle.destroy()
  await until(() => ends.length === 1, { what: 'it ended' })
  expect(ends[0]).not.toBe('sent')
})
