/** The loopback HTTP server: who is answered, and what happens to a taken port. */
import { once } from 'node:events'
import { request } from 'node:http'
import { connect, type Socket } from 'node:net'
import { pino } from 'pino'
import { afterEach, describe, expect, it } from 'vitest'
import { HttpServer } from '../../../agent/http/server.ts'

const log = pino({ level: 'silent' })
const place = { host: '127.0.0.1', port: 0 }
let server: HttpServer | undefined
afterEach(async () => server?.[Symbol.asyncDispose]())

function statusFor(url: string, host: string): Promise<number | undefined> {
  return new Promise((resolve, reject) => {
    request(`${url}/hello`, { headers: { host } }, (answer) => {
      answer.resume()
      resolve(answer.statusCode)
    })
      .on('error', reject)
      .end()
  })
}

describe('loopback HTTP', () => {
  it('answers loopback names, and no name that a web page could point here', async () => {
    server = await HttpServer.start(place, (app) => app.get('/hello', () => 'hello'), log)
    for (const host of ['127.0.0.1', '127.0.0.1:7478', 'localhost:1', '[::1]:7478', 'LOCALHOST', '127.9.9.9:80']) {
      expect([host, await statusFor(server.url, host)]).toEqual([host, 200])
    }
    for (const host of ['evil.example', '127.0.0.1.evil.example', 'localhost.evil.example:7478', '10.0.0.1', '[::2]']) {
      expect([host, await statusFor(server.url, host)]).toEqual([host, 421])
    }
  })

  it('takes names as long as derivations have them', async () => {
    server = await HttpServer.start(place, (app) => app.get('/log/:name', ({ params }) => params), log)
    const name = `${'a'.repeat(250)}.drv`
    const answer = await fetch(`${server.url}/log/${name}`)
    expect(await answer.json()).toEqual({ name })
  })

  it('says which port is taken, and what to do', async () => {
    server = await HttpServer.start(place, () => undefined, log)
    const port = Number(new URL(server.url).port)
    await expect(HttpServer.start({ host: '127.0.0.1', port }, () => undefined, log)).rejects.toMatchObject({
      code: 'taken',
      message: `the HTTP port 127.0.0.1:${port} is in use`,
      next: expect.stringContaining('--http'),
    })
  })

  it('gives connections that begin as HTTP/2 away, however they come, and stops while one says nothing', async () => {
    const given: Buffer[] = []
    const take = (socket: Socket) => {
      given.push(socket.read() as Buffer)
      socket.destroy()
    }
    server = await HttpServer.start(place, (app) => app.get('/hello', () => 'hello'), log, take)
    const port = Number(new URL(server.url).port)
    const say = async (...parts: string[]) => {
      const socket = connect({ port, host: '127.0.0.1', noDelay: true })
      const closed = once(socket, 'close')
      let heard = ''
      socket.on('data', (chunk: Buffer) => (heard += chunk.toString()))
      for (const part of parts) await new Promise<void>((sent) => socket.write(part, () => setImmediate(sent)))
      await closed
      return heard
    }
    const rest = ' HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n'
    expect(await say('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n')).toBe('')
    expect(await say('P', 'R', 'I * HTTP/2.0\r\n\r\n')).toBe('')
    expect(given.map((bytes) => bytes.toString('latin1', 0, 3))).toEqual(['PRI', 'PRI'])
    expect(await say('G', 'ET /hello', rest)).toMatch(/^HTTP\/1.1 200 .*hello$/s)
    expect(await say('PR', 'OPFIND /hello', rest)).toMatch(/^HTTP\/1.1 40\d /)
    const silent = connect(port, '127.0.0.1')
    await once(silent, 'connect')
    expect(await (await fetch(`${server.url}/hello`)).text()).toBe('hello')
    const closed = once(silent, 'close')
    await server[Symbol.asyncDispose]()
    await closed
  })

  it('stops while an answer hangs', async () => {
    const arrived = Promise.withResolvers<void>()
    const hang = () => {
      arrived.resolve()
      return new Promise(() => undefined)
    }
    const hanging = await HttpServer.start(place, (app) => app.get('/hello', hang), log)
    const asked = statusFor(hanging.url, 'localhost').catch(() => 'cut')
    await arrived.promise
    await hanging[Symbol.asyncDispose]()
    expect(await asked).toBe('cut')
  })
})
