/** Programs of others that discover services by an agent: a real Envoy, HAProxy, and dnsmasq as the resolver of a machine. Each ends with the stack. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { freePort } from './agents.ts'

/** Where .ci/run puts one: it is a package of Python's registry. */
const ENVOY = process.env.ENVOY ?? new URL('../node_modules/.cache/envoy/envoy/_bin/envoy', import.meta.url).pathname
const V3 = { transport_api_version: 'V3' } as const

export function hasEnvoy(): boolean {
  if (!existsSync(ENVOY))
    console.warn('SKIPPED: no Envoy; .ci/run installs one where the registry has it, ENVOY=PATH names another')
  return existsSync(ENVOY)
}

/** Takes everything from an agent by ADS or by REST; its listener is then 127.0.0.1:7480. */
export async function startEnvoy(way: 'ads' | 'rest', agent: URL, stack: AsyncDisposableStack): Promise<void> {
  const name = 'localhost'
  const address = { socket_address: { address: agent.hostname, port_value: Number(agent.port) } }
  const cluster = {
    name,
    type: 'STATIC',
    load_assignment: { cluster_name: name, endpoints: [{ lb_endpoints: [{ endpoint: { address } }] }] },
    ...(way === 'ads' && { typed_extension_protocol_options: HTTP2 }),
  }
  const ads = { ads: {}, resource_api_version: 'V3' }
  const api = { api_type: 'REST', cluster_names: [name], refresh_delay: '0.5s', ...V3 }
  const source = way === 'ads' ? ads : { api_config_source: api, resource_api_version: 'V3' }
  const stream = { api_type: 'GRPC', grpc_services: [{ envoy_grpc: { cluster_name: name } }], ...V3 }
  const dynamic = { cds_config: source, lds_config: source, ...(way === 'ads' && { ads_config: stream }) }
  const config = {
    node: { id: 'envoy', cluster: 'test' },
    static_resources: { clusters: [cluster] },
    dynamic_resources: dynamic,
  }
  const file = join(directoryOf(stack), 'envoy.json')
  writeFileSync(file, JSON.stringify(config))
  runUntilEnd(ENVOY, ['-c', file, '--concurrency', '1', '--use-dynamic-base-id', '-l', 'error'], stack)
}

const HTTP2 = {
  'envoy.extensions.upstreams.http.v3.HttpProtocolOptions': {
    '@type': 'type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions',
    explicit_http_config: { http2_protocol_options: {} },
  },
}

/** Balances what SRV names say at an address of this machine, which it returns. */
export async function startHaproxy(srv: string, dns: string, stack: AsyncDisposableStack): Promise<string> {
  const address = `127.0.0.1:${await freePort()}`
  const file = join(directoryOf(stack), 'haproxy.cfg')
  writeFileSync(
    file,
    `
defaults
  mode http
  timeout connect 5s
  timeout client 5s
  timeout server 5s
resolvers agent
  nameserver agent ${dns}
  hold valid 1s
frontend all
  bind ${address}
  default_backend found
backend found
  server-template found 5 ${srv} resolvers agent resolve-prefer ipv4
`,
  )
  runUntilEnd('haproxy', ['-db', '-f', file], stack)
  return address
}

/** A resolver with these lines, that drops loopback addresses of others; returns its port. */
export async function startDnsmasq(lines: string, stack: AsyncDisposableStack): Promise<string> {
  const port = String(await freePort())
  const file = join(directoryOf(stack), 'dnsmasq.conf')
  const own = [
    'listen-address=127.0.0.1',
    'bind-interfaces',
    'no-resolv',
    'no-hosts',
    'stop-dns-rebind',
    'user=',
    'pid-file=',
  ]
  writeFileSync(file, `${[`port=${port}`, ...own].join('\n')}\n${lines}\n`)
  runUntilEnd('dnsmasq', ['--keep-in-foreground', '-C', file], stack)
  return port
}

function directoryOf(stack: AsyncDisposableStack): string {
  const directory = mkdtempSync(join(tmpdir(), 'undernet-other-'))
  stack.defer(() => rmSync(directory, { recursive: true }))
  return directory
}

function runUntilEnd(program: string, args: string[], stack: AsyncDisposableStack): void {
  const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'inherit'] })
  const ended = once(child, 'exit')
  stack.defer(async () => {
    child.kill('SIGKILL')
    await ended
  })
}
