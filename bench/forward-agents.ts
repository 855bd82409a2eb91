/**
 * Two agents of a closed network, of which one offers the ports of an application and the other forwards to them: for what measures forwards.
 */
import { writeFileSync } from 'node:fs'
import type { ForwardEvent } from '../agent/api/service-contract.ts'
import { Bundle, freePort, RealAgent, until } from '../test/agents.ts'
import type { LanHost } from './lan.ts'

const READY_MS_MAX = 60_000
/** Of namespaces, which have all ports for themselves. */
const PORT = 7_477

/** Two hosts, where they are not this machine's loopback. */
type Place = { near: LanHost; far: LanHost }
const POLICY = '[[grants]]\nfrom = "*"\nto = "*"\nallow = ["service:offer *", "service:connect *"]\n'

/** Two agents of a closed network; the one offers both ports, the other forwards to them. */
export async function startForwarding(
  far: { bulk: number; echo: number },
  signal: AbortSignal,
  stack: AsyncDisposableStack,
  place?: Place,
): Promise<{ offering: RealAgent; using: RealAgent; ports: { bulk: number; echo: number }; proxy: number }> {
  const bundle = stack.use(await Bundle.build())
  const proxy = await freePort()
  const start = async (name: string, host: LanHost | undefined, more: object = {}) => {
    const [address, port] = host === undefined ? ['127.0.0.1', await freePort()] : [host.address, PORT]
    const listen = `/ip4/${address}/tcp/${port}`
    const flags = ['--no-open', '--log-level', 'warn']
    const within = host && { namespace: host.namespace }
    const options = { name, entry: bundle.entry, env: bundle.env, listen, flags, ...within, ...more }
    return stack.use(await RealAgent.start(options))
  }
  const offering = await start('offering', place?.far)
  const loopback = { proxy: `127.0.0.1:${proxy}` }
  const using = await start('using', place?.near, { bootstrap: [await offering.address()], loopback })
  await offering.json('network', 'create', 'home', '--as', 'offering')
  const { stdout: token } = await offering.run('invite')
  const input = `${using.state}/token`
  writeFileSync(input, token, { mode: 0o600 })
  await using.json('join', '--file', input, '--as', 'using')
  const policy = `${offering.state}/policy.toml`
  writeFileSync(policy, POLICY)
  await offering.json('policy', 'set', policy, '--yes')
  await offering.json('service', 'add', 'bulk', String(far.bulk), '--check', 'none')
  await offering.json('service', 'add', 'echo', String(far.echo), '--check', 'none')
  const isThere = async () => (await using.status()).services.length === 2 || undefined
  await until(isThere, { what: 'the services are known', ms: READY_MS_MAX })
  const forwarded = await Promise.all(['bulk', 'echo'].map((name) => forward(using, name, signal)))
  return { offering, using, proxy, ports: { bulk: forwarded[0] ?? 0, echo: forwarded[1] ?? 0 } }
}

function forward(agent: RealAgent, name: string, signal: AbortSignal): Promise<number> {
  const { promise, resolve, reject } = Promise.withResolvers<number>()
  const watch = async () => {
    for await (const event of agent.client.events<ForwardEvent>('forward', { name, port: 0 }, signal))
      if (event.type === 'listening') resolve(event.port)
  }
  watch().catch(reject)
  return promise
}
