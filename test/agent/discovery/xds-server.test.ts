/** The stream of xDS, frame by frame: who is sent what and when, what becomes of refusals, and of bytes that are no gRPC. */
import { once } from 'node:events'
import { type ClientHttp2Session, type ClientHttp2Stream, connect } from 'node:http2'
import { pino } from 'pino'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { frame, messages } from '../../../agent/discovery/grpc.ts'
import { decodeMessage, encodeMessage, type Message } from '../../../agent/discovery/protobuf.ts'
import { ANY_TYPES, discoveryRequest, TYPE_URLS } from '../../../agent/discovery/xds-schema.ts'
import { XdsServer } from '../../../agent/discovery/xds-server.ts'
import { HttpServer } from '../../../agent/http/server.ts'
import { until } from '../../agents.ts'
import { instance } from '../routing/fake-services.ts'
import { fakeDirectory } from './fake-directory.ts'

const ADS = '/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources'
/** As discoveryResponse, with the bytes of its resources. */
const response: Message = {
  fields: {
    version_info: { number: 1, type: 'string' },
    resources: {
      number: 2,
      type: { fields: { type_url: { number: 1, type: 'string' }, value: { number: 2, type: 'string' } } },
      many: true,
    },
    type_url: { number: 4, type: 'string' },
    nonce: { number: 5, type: 'string' },
  },
}
type Response = { version_info: string; resources: { value: string }[]; type_url: string; nonce: string }

let stack: AsyncDisposableStack
let session: ClientHttp2Session
let warnings: string[]
let services: ReturnType<typeof fakeDirectory>['services']

beforeEach(async () => {
  stack = new AsyncDisposableStack()
  // Last of all: the server ends first.
  stack.defer(() => session.destroy())
  warnings = []
  const fake = fakeDirectory()
  services = fake.services
  services.set(instance(), instance({ service: 'db', port: 5_432 }))
  const log = pino({ level: 'warn' }, { write: (line: string) => void warnings.push(line) })
  let xds: XdsServer | undefined
  const http = stack.use(
    await HttpServer.start(
      { host: '127.0.0.1', port: 0 },
      () => undefined,
      log,
      (socket) => xds?.accept(socket),
    ),
  )
  xds = stack.use(new XdsServer(fake.directory, log))
  session = connect(http.url)
  session.on('error', () => undefined)
})
afterEach(() => stack.disposeAsync())

function open(path = ADS): ClientHttp2Stream {
  const stream = session.request({
    ':method': 'POST',
    ':path': path,
    'content-type': 'application/grpc',
    te: 'trailers',
  })
  stream.on('error', () => undefined)
  return stream
}

/** A stream, and what came on it so far. It accepts what it was sent, unless a request says otherwise. */
function ads() {
  const stream = open()
  const all: Response[] = []
  const reading = (async () => {
    for await (const bytes of messages(stream)) all.push(decodeMessage(response, bytes) as Response)
  })()
  reading.catch(() => undefined)
  const say = (request: { type_url: string } & Record<string, unknown>) => {
    const last = all.findLast(({ type_url }) => type_url === request.type_url)?.nonce
    const accepted = last === undefined ? {} : { response_nonce: last }
    stream.write(frame(encodeMessage(discoveryRequest, { ...accepted, ...request }, ANY_TYPES)))
  }
  const heard = () => all.filter(({ type_url }) => type_url !== TYPE_URLS.routes)
  /** What came, once there are so many, and with what came unasked: answers follow one another, so that of a last question shows it. */
  const next = async (count: number) => {
    await until(() => heard().length >= count, { what: `${count} answers`, everyMs: 5 })
    const probes = all.length - heard().length
    say({ type_url: TYPE_URLS.routes, resource_names: [`probe-${probes}`] })
    await until(() => all.length - heard().length > probes, { what: 'the probe is answered', everyMs: 5 })
    return heard().map(({ type_url, resources }) => `${type_url.split('.').at(-1)} ${resources.length}`)
  }
  return { stream, heard, say, next }
}
const clusters = { type_url: TYPE_URLS.clusters, resource_names: [] }
const endpoints = (...resource_names: string[]) => ({ type_url: TYPE_URLS.endpoints, resource_names })

/** How a stream ended: the status of gRPC. */
async function ending(stream: ClientHttp2Stream): Promise<string> {
  const status = Promise.withResolvers<string>()
  stream.on(
    'response',
    (headers) => headers['grpc-status'] !== undefined && status.resolve(String(headers['grpc-status'])),
  )
  stream.on('trailers', (trailers) => status.resolve(String(trailers['grpc-status'])))
  stream.on('close', () => status.resolve('none'))
  stream.resume()
  return await status.promise
}

describe('a client', () => {
  it('is sent what it asks for, once, and again what changed of that', async () => {
    const { say, next } = ads()
    say({ ...clusters, node: { id: 'envoy-1' } })
    expect(await next(1)).toEqual(['Cluster 2'])
    say(clusters)
    say(endpoints('web.home.internal'))
    expect(await next(2)).toEqual(['Cluster 2', 'ClusterLoadAssignment 1'])
    say(endpoints('web.home.internal'))
    services.set(instance({ port: 9_090 }), instance({ service: 'db', port: 5_432 }))
    expect((await next(3)).at(-1)).toBe('ClusterLoadAssignment 1')
    services.set(instance({ port: 9_090 }))
    expect((await next(4)).slice(3)).toEqual(['Cluster 1'])
  })

  it('is sent more names at once, nothing for fewer, and an empty list for what is gone', async () => {
    const { say, heard, next } = ads()
    say(endpoints('web.home.internal'))
    await next(1)
    say(endpoints('web.home.internal', 'db.home.internal'))
    expect((await next(2)).at(-1)).toBe('ClusterLoadAssignment 2')
    say(endpoints('db.home.internal'))
    expect(await next(2)).toHaveLength(2)
    services.set()
    await next(3)
    expect(heard().at(-1)?.resources[0]?.value).not.toContain('127.0.0.1')
  })

  it('that refuses is not sent the same again, and its reason is logged', async () => {
    const { say, next } = ads()
    say({ ...clusters, node: { id: 'envoy-1' } })
    await next(1)
    say({ ...clusters, error_detail: { code: 3, message: 'no\u001b[31m such field' } })
    expect(await next(1)).toHaveLength(1)
    expect(warnings.join()).toMatch(/envoy-1.*no.*such field.*xds.refused/)
    expect(warnings.join()).not.toContain('\\u001b')
    services.set(instance())
    expect((await next(2)).at(-1)).toBe('Cluster 1')
  })

  it('is not heard about answers that are not the last', async () => {
    const { say, next } = ads()
    say(endpoints('web.home.internal'))
    await next(1)
    say({ ...endpoints('db.home.internal'), response_nonce: 'stale' })
    expect(await next(1)).toHaveLength(1)
  })

  it('may ask for what there is none of, and on streams for one kind', async () => {
    const { say, next } = ads()
    say({ type_url: 'type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret', resource_names: ['x'] })
    say(clusters)
    expect(await next(1)).toEqual(['Cluster 2'])
    const stream = open('/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints')
    stream.write(frame(encodeMessage(discoveryRequest, { resource_names: ['web'] }, ANY_TYPES)))
    const [bytes] = (await once(stream, 'data')) as [Buffer]
    expect(bytes.toString('latin1')).toContain('ClusterLoadAssignment')
  })
})

describe('a stream', () => {
  it('ends with a status for what is no xDS', async () => {
    const said = (bytes: Uint8Array, path = ADS) => {
      const stream = open(path)
      stream.end(bytes)
      return ending(stream)
    }
    expect(await said(Buffer.alloc(0))).toBe('0')
    expect(await said(Buffer.from([1, 0, 0, 0, 0])), 'compressed').toBe('12')
    expect(await said(Buffer.from([0, 0xff, 0xff, 0xff, 0xff])), 'too long').toBe('8')
    expect(await said(Buffer.from([0, 0, 0, 0, 9, 1])), 'cut').toBe('3')
    expect(await said(frame(Buffer.from([0x0a, 0x7f]))), 'no message').toBe('3')
    expect(
      await said(Buffer.alloc(0), '/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources'),
    ).toBe('12')
    expect(await said(Buffer.alloc(0), '/constructor')).toBe('12')
    const plain = session.request({ ':path': '/' })
    const [headers] = (await once(plain, 'response')) as [Record<string, unknown>]
    expect(headers[':status']).toBe(415)
  })

  it('ends when the agent stops, with a word to try again', async () => {
    const { say, next, stream } = ads()
    say(clusters)
    await next(1)
    const ended = ending(stream)
    await stack.disposeAsync()
    expect(await ended).toBe('14')
  })
})
