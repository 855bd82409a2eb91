/** Resources of xDS against the .proto files of Envoy's data-plane API, as an independent library reads them; and what is in them. */
import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import fc from 'fast-check'
import protobuf from 'protobufjs'
import { describe, expect, it } from 'vitest'
import { decodeMessage, encodeMessage, type Json, ProtobufFault } from '../../../agent/discovery/protobuf.ts'
import { snapshotOf } from '../../../agent/discovery/resources.ts'
import {
  ANY_TYPES,
  discoveryRequest,
  discoveryResponse,
  RESOURCE_KINDS,
  TYPE_URLS,
} from '../../../agent/discovery/xds-schema.ts'
import { instance } from '../routing/fake-services.ts'
import { fakeDirectory } from './fake-directory.ts'

const deps = join(dirname(fileURLToPath(import.meta.resolve('@grpc/grpc-js-xds'))), '..', '..', 'deps')
const places = [
  ...['envoy-api', 'xds', 'protoc-gen-validate', 'googleapis'].map((folder) => join(deps, folder)),
  dirname(fileURLToPath(import.meta.resolve('protobufjs'))),
]
const root = new protobuf.Root()
root.resolvePath = (_origin, target) => places.map((place) => join(place, target)).find(existsSync) ?? target
root.loadSync(
  [
    'envoy/service/discovery/v3/discovery.proto',
    'envoy/config/cluster/v3/cluster.proto',
    'envoy/config/endpoint/v3/endpoint.proto',
    'envoy/config/listener/v3/listener.proto',
    'envoy/config/route/v3/route.proto',
    'envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto',
    'envoy/extensions/filters/http/router/v3/router.proto',
  ],
  { keepCase: true },
)

/** What the library reads from bytes, in the JSON form: with what an Any holds, durations and wrapped numbers. */
function read(type: protobuf.Type, bytes: Uint8Array): Json {
  const plain = (at: protobuf.Type, value: Json): Json =>
    Object.fromEntries(
      Object.entries(value).map(([name, given]) => {
        const field = at.fields[name]?.resolve()
        const inner = field?.resolvedType
        const one = (item: unknown): unknown => {
          if (!(inner instanceof protobuf.Type)) return item
          if (inner.name === 'Any') {
            const { type_url, value: held } = item as { type_url: string; value: Uint8Array }
            return { '@type': type_url, ...read(root.lookupType(type_url.split('/')[1] ?? ''), held) }
          }
          if (inner.name === 'UInt32Value') return (item as { value: number }).value
          if (inner.name === 'Duration') {
            const { seconds = 0, nanos = 0 } = item as { seconds?: number; nanos?: number }
            return `${seconds + nanos / 1e9}s`
          }
          return plain(inner, item as Json)
        }
        return [name, Array.isArray(given) ? given.map(one) : one(given)]
      }),
    )
  return plain(type, type.toObject(type.decode(bytes), { enums: String, longs: Number }) as Json)
}

/** Without what a reader of protocol buffers cannot tell from nothing. */
function lean(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(lean)
  if (typeof value !== 'object' || value === null) return value
  const kept = Object.entries(value).filter(([name, one]) => {
    if (Array.isArray(one)) return one.length > 0
    const isFirst = name !== '@type' && (one === 0 || one === '' || one === 'ROUND_ROBIN' || one === 'UNKNOWN')
    return !isFirst
  })
  return Object.fromEntries(kept.map(([name, one]) => [name, lean(one)]))
}

describe('resources', () => {
  const { services, directory, held } = fakeDirectory('attic')
  services.set(
    instance({ proto: 'http', zone: 'attic', weight: 3 }),
    instance({ proto: 'http', node: 'board', peerId: '12D3KooWboard', port: 9_090, zone: 'shed', state: 'unknown' }),
    instance({ proto: 'http', node: 'old', peerId: '12D3KooWold', state: 'ill' }),
    instance({ proto: 'http', node: 'off', peerId: '12D3KooWoff', state: 'draining' }),
    instance({ service: 'taken' }),
    instance({ service: 'time', proto: 'udp' }),
  )

  it('are, as bytes and as JSON, what the .proto files say', async () => {
    for (const kind of RESOURCE_KINDS) {
      for (const way of ['ads', 'rest'] as const) {
        for (const names of ['all', ['web.home.internal', 'undernet', 'web', 'gone.home.internal']] as const) {
          const { version, resources } = await snapshotOf(kind, names, way, directory)
          expect(resources.length).toBeGreaterThan(0)
          const response = { version_info: version, resources, type_url: TYPE_URLS[kind], nonce: '1' }
          const bytes = encodeMessage(discoveryResponse, response, ANY_TYPES)
          const type = root.lookupType('envoy.service.discovery.v3.DiscoveryResponse')
          expect(lean(read(type, bytes))).toEqual(lean(response))
        }
      }
    }
  })

  it('have the endpoints that can be used, the near ones first, and no others', async () => {
    const { resources } = await snapshotOf('endpoints', ['web.home.internal'], 'ads', directory)
    const socket_address = (port_value: number) => ({ socket_address: { address: '127.0.0.1', port_value } })
    expect(resources).toEqual([
      {
        '@type': TYPE_URLS.endpoints,
        cluster_name: 'web.home.internal',
        endpoints: [
          {
            locality: { zone: 'attic' },
            priority: 0,
            load_balancing_weight: 3,
            lb_endpoints: [
              { endpoint: { address: socket_address(8_080) }, health_status: 'HEALTHY', load_balancing_weight: 3 },
            ],
          },
          {
            locality: { zone: 'shed' },
            priority: 1,
            load_balancing_weight: 1,
            lb_endpoints: [
              { endpoint: { address: socket_address(9_090) }, health_status: 'UNKNOWN', load_balancing_weight: 1 },
            ],
          },
        ],
      },
    ])
    const [taken] = (await snapshotOf('endpoints', ['taken'], 'ads', directory)).resources
    expect(taken, 'an address where a stranger would answer').toMatchObject({ endpoints: [] })
  })

  it('take addresses only for endpoints', async () => {
    held.clear()
    for (const kind of ['clusters', 'listeners', 'routes'] as const) await snapshotOf(kind, 'all', 'ads', directory)
    expect([...held]).toEqual([])
    await snapshotOf('endpoints', ['web'], 'ads', directory)
    expect([...held].toSorted()).toEqual(['web.board.home.internal', 'web.nas.home.internal'])
  })

  it('have a version that changes when they do, and only then', async () => {
    const version = async () => (await snapshotOf('endpoints', ['web'], 'ads', directory)).version
    const before = await version()
    expect(await version()).toBe(before)
    services.set(instance({ proto: 'http' }))
    expect(await version()).not.toBe(before)
  })
})

describe('protocol buffers', () => {
  const type = root.lookupType('envoy.service.discovery.v3.DiscoveryRequest')
  const request = fc.record({
    version_info: fc.string(),
    node: fc.record({ id: fc.string(), cluster: fc.string(), user_agent_name: fc.string() }),
    resource_names: fc.array(fc.string()),
    type_url: fc.string(),
    response_nonce: fc.string(),
    error_detail: fc.record({ code: fc.nat(100), message: fc.string() }),
  })

  it('are read as an independent library writes them', () => {
    fc.assert(
      fc.property(request, (value) => {
        const read = decodeMessage(discoveryRequest, type.encode(type.fromObject(value)).finish()) as Json &
          typeof value
        const { cluster: _unread, ...node } = value.node
        const wanted = { ...value, node }
        for (const name of ['version_info', 'type_url', 'response_nonce'] as const)
          expect(read[name] ?? '').toBe(wanted[name])
        expect(read.resource_names).toEqual(wanted.resource_names)
        expect(lean(read.node)).toEqual(lean(node))
        expect(lean(read.error_detail)).toEqual(lean(wanted.error_detail))
      }),
    )
  })

  it('are a message or a fault, whatever the bytes', () => {
    const mangled = fc.tuple(request, fc.nat(), fc.nat(255)).map(([value, at, byte]) => {
      const bytes = Uint8Array.from(type.encode(type.fromObject(value)).finish())
      bytes[at % Math.max(1, bytes.byteLength)] = byte
      return bytes
    })
    fc.assert(
      fc.property(fc.oneof(fc.uint8Array({ maxLength: 300 }), mangled), (bytes) => {
        try {
          const { resource_names } = decodeMessage(discoveryRequest, bytes)
          expect(Array.isArray(resource_names)).toBe(true)
        } catch (error) {
          expect(error).toBeInstanceOf(ProtobufFault)
        }
      }),
      { numRuns: 1_000 },
    )
  })
})
