/** Routers that answer, refuse, lie, flood and fall silent: what is believed of them, and what a node does then. */
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import fc from 'fast-check'
import { describe, expect, it, onTestFinished } from 'vitest'
import { gatewayIn } from '../../../agent/mesh/gateway.ts'
import { NatPmp, readExternalAddress, readMapping } from '../../../agent/mesh/nat-pmp.ts'
import { PortMapping, type PortMappingOptions } from '../../../agent/mesh/port-mapping.ts'
import { PortTaken, readAnswer, readDescription, Upnp } from '../../../agent/mesh/upnp.ts'
import { WireError } from '../../../protocols/error.ts'
import { until } from '../../agents.ts'
import { quiet } from './nodes.ts'

const SERVICE = 'urn:schemas-upnp-org:service:WANIPConnection:1'
const LOCATION = new URL('http://192.168.1.1:5000/rootDesc.xml')
const signal = AbortSignal.timeout(60_000)

const described = (controlUrl: string, type = SERVICE) =>
  `<root><service><serviceType>urn:x</serviceType><controlURL>/no</controlURL></service><service><serviceType>${type}</serviceType><controlURL>${controlUrl}</controlURL></service></root>`
const answered = (location: string) => Buffer.from(`HTTP/1.1 200 OK\r\nST: x\r\nLocation: ${location}\r\n\r\n`)

describe('what UPnP routers say', () => {
  it('is read, with URLs that lead back to them', () => {
    expect(readAnswer(answered(LOCATION.href), '192.168.1.1').href).toBe(LOCATION.href)
    expect(readDescription(described('/ctl/IPConn?a=1&amp;b=2'), LOCATION).url.href).toBe(
      'http://192.168.1.1:5000/ctl/IPConn?a=1&b=2',
    )
  })

  it.each([
    'http://192.168.1.2/x',
    'https://192.168.1.1/x',
    'http://u:p@192.168.1.1/',
    'file:///etc/passwd',
    '//evil/',
    'http://[',
  ])('is refused where a URL leads elsewhere: %s', (url) => {
    expect(() => readAnswer(answered(url), '192.168.1.1')).toThrow(WireError)
    expect(() => readDescription(described(url), LOCATION)).toThrow(WireError)
  })

  it('throws WireErrors only, whatever it is', () => {
    const pieces = fc.constantFrom(
      '<service>',
      '</service>',
      '<serviceType>',
      '</serviceType>',
      SERVICE,
      '<controlURL>',
      '/x',
      '\r\n',
    )
    const text = fc.array(fc.oneof(pieces, fc.string()), { maxLength: 40 }).map((all) => all.join(''))
    const throwsOnly = (read: () => unknown) => {
      try {
        read()
      } catch (error) {
        if (!(error instanceof WireError)) throw error
      }
    }
    fc.assert(fc.property(text, (xml) => throwsOnly(() => readDescription(xml, LOCATION))))
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => throwsOnly(() => readAnswer(bytes, '10.0.0.1'))),
    )
    fc.assert(fc.property(fc.uint8Array({ maxLength: 20 }), (bytes) => throwsOnly(() => readMapping(bytes, 7477))))
    fc.assert(fc.property(fc.uint8Array({ maxLength: 20 }), (bytes) => throwsOnly(() => readExternalAddress(bytes))))
    fc.assert(fc.property(fc.string(), (routes) => void gatewayIn(routes)))
  })

  it('is read up to a limit, with no redirect followed, and within a time', async () => {
    const asked: string[] = []
    const router = await serve((path, respond) => {
      asked.push(path)
      if (path === '/flood') for (let i = 0; i < 100; i++) respond.write('x'.repeat(16_384))
      if (path === '/redirect') respond.writeHead(302, { location: '/elsewhere' })
      if (path !== '/silent') respond.end()
    })
    const call = (path: string) =>
      new Upnp({ url: new URL(path, router), type: SERVICE }, '127.0.0.1').externalAddress(signal)
    await expect(call('/flood')).rejects.toMatchObject({ code: 'too-large' })
    await expect(call('/redirect')).rejects.toMatchObject({ code: 'closed' })
    await expect(call('/silent')).rejects.toMatchObject({ code: 'timeout' })
    expect(asked).toEqual(['/flood', '/redirect', '/silent'])
  })

  it('is an error of theirs, in printable words', async () => {
    const fault = (code: number, text: string) =>
      `<s:Fault><errorCode>${code}</errorCode><errorDescription>${text}</errorDescription></s:Fault>`
    const leases: string[] = []
    const router = await serve((path, respond, body) => {
      leases.push(/<NewLeaseDuration>(\d+)</.exec(body)?.[1] ?? '')
      if (path === '/permanent' && leases.at(-1) === '0') return respond.end('<ok/>')
      respond.writeHead(500).end(fault(path === '/taken' ? 718 : path === '/permanent' ? 725 : 606, 'No\u001b[31m way'))
    })
    const add = (path: string) =>
      new Upnp({ url: new URL(path, router), type: SERVICE }, '127.0.0.1').map(
        { transport: 'tcp', port: 7477, externalPort: 7477, leaseSeconds: 1200 },
        signal,
      )
    await expect(add('/taken')).rejects.toThrow(PortTaken)
    await expect(add('/no')).rejects.toThrow('the router refuses: No[31m way (606)')
    expect(await add('/permanent')).toEqual({ externalPort: 7477 })
    expect(leases).toEqual(['1200', '1200', '1200', '0'])
  })
})

describe('NAT-PMP', () => {
  it('asks again, takes the answer to its question, and gives up', async () => {
    const router = createSocket('udp4')
    router.bind(0, '127.0.0.1')
    await once(router, 'listening')
    onTestFinished(() => void router.close())
    let questions = 0
    router.on('message', (bytes, from) => {
      if (bytes[1] !== 0) return
      questions++
      const other = Buffer.from([0, 130, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0])
      const answer = Buffer.from([0, 128, 0, 0, 0, 0, 0, 1, 45, 10, 0, 2])
      router.send(questions === 1 ? other : answer, from.port, from.address)
    })
    using pmp = await NatPmp.to('127.0.0.1', router.address().port)
    expect(await pmp.externalAddress(signal)).toBe('45.10.0.2')
    expect(questions).toBe(2)
    const wish = { transport: 'tcp', port: 1, externalPort: 1, leaseSeconds: 1 } as const
    await expect(pmp.map(wish, signal)).rejects.toMatchObject({ code: 'timeout' })
  })

  it('says in words what the router refuses', () => {
    expect(() => readExternalAddress(Buffer.from([0, 128, 0, 2]))).toThrow('the router refuses: it does not allow it')
    expect(() => readMapping(Buffer.from([0, 130, 0, 0, 0, 0, 0, 1, 0, 80, 0, 80, 0, 0, 0, 1]), 7477)).toThrow(
      WireError,
    )
  })
})

describe('mapping', () => {
  const gateway = { address: '192.168.1.1', localAddress: '192.168.1.2' }
  const start = (router: Partial<Awaited<ReturnType<NonNullable<PortMappingOptions['connect']>>>>) => {
    const told: string[][] = []
    const mapping = PortMapping.start({
      ports: () => [
        { transport: 'tcp', port: 7477, isDialled: true },
        { transport: 'tcp', port: 7476, isDialled: false },
      ],
      log: quiet,
      gateway: async () => gateway,
      connect: async () => ({
        protocol: 'upnp',
        externalAddress: async () => '45.10.0.2',
        map: async ({ externalPort }) => ({ externalPort }),
        unmap: async () => undefined,
        [Symbol.dispose]: () => undefined,
        ...router,
      }),
    })
    mapping.onChange(() => told.push(mapping.addresses().map(String)))
    return { mapping, told }
  }
  const settled = (mapping: PortMapping) =>
    until(() => mapping.view.state !== 'asking', { what: 'the router was asked' })

  it('tells what can be dialled, and takes it back when it ends', async () => {
    const given: number[] = []
    const { mapping, told } = start({ unmap: async ({ externalPort }) => given.push(externalPort) })
    await settled(mapping)
    await mapping[Symbol.asyncDispose]()
    expect(told).toEqual([['/ip4/45.10.0.2/tcp/7477'], []])
    expect(given).toEqual([7477, 7476])
  })

  it('takes another port where one is taken, and gives up after some', async () => {
    const taken = start({
      map: async ({ externalPort }) => {
        if (externalPort < 7480) throw new PortTaken('taken')
        return { externalPort }
      },
    })
    await settled(taken.mapping)
    expect(taken.mapping.view.ports.map(({ externalPort }) => externalPort)).toEqual([7480, 7481])
    await taken.mapping[Symbol.asyncDispose]()
    const full = start({ map: () => Promise.reject(new PortTaken('all taken')) })
    await settled(full.mapping)
    expect(full.mapping.view).toMatchObject({ state: 'refused', reason: 'all taken' })
    await full.mapping[Symbol.asyncDispose]()
  })

  it.each(['10.0.0.1', '100.64.3.4', '192.168.0.1', '127.0.0.1', '0.0.0.0', '224.0.0.1'])(
    'tells nobody of a router that says it is at %s',
    async (address) => {
      const { mapping, told } = start({ externalAddress: async () => address })
      await settled(mapping)
      expect([mapping.view.isPublic, mapping.addresses(), told]).toEqual([false, [], []])
      await mapping[Symbol.asyncDispose]()
    },
  )
})

it('the default gateway is the one with the smallest metric', () => {
  const head = 'Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n'
  const line = (gateway: string, metric: number, flags = '0003') =>
    `eth0\t00000000\t${gateway}\t${flags}\t0\t0\t${metric}\t00000000\n`
  expect(gatewayIn(head + line('0101A8C0', 600) + line('0201A8C0', 100))).toBe('192.168.1.2')
  expect(gatewayIn(head + line('00000000', 0, '0001'))).toBeUndefined()
  expect(gatewayIn('')).toBeUndefined()
})

type Respond = Parameters<NonNullable<Parameters<typeof createServer>[1]>>[1]

async function serve(answer: (path: string, respond: Respond, body: string) => void): Promise<string> {
  const server: Server = createServer((request, response) => {
    let body = ''
    request.on('data', (chunk: Buffer) => {
      body += chunk.toString()
    })
    request.on('end', () => answer(request.url ?? '', response, body))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => {
    server.closeAllConnections()
    server.close()
  })
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}
