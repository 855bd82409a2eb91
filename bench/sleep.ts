/**
 * A machine that sleeps: the process of one of two members is stopped for a minute, by which time the other has given it up, and goes on. Counted
 * from then until both are connected again, and until a request to a service behind it is answered.
 */
import { once } from 'node:events'
import { setTimeout as delay } from 'node:timers/promises'
import type { PeerView } from '../agent/api/contract.ts'
import { freePort, type RealAgent, run, until } from '../test/agents.ts'
import { invite, joinWith, Lab, says } from '../test/cluster/members.ts'
import { webServer } from '../test/web-server.ts'
import { type Bench, scaled } from './harness.ts'

const SLEEP_MS = 60_000
/** Noticed by then: see agent/mesh/liveness.ts. */
const SLEEP_MS_LEAST = 20_000
const AGAIN_MS_MAX = 60_000
const POLICY = '[[grants]]\nfrom = "*"\nto = "*"\nallow = ["service:offer *", "service:connect *"]\n'

export const bench: Bench = {
  name: 'sleep',
  question: 'How soon is a machine that slept connected again?',
  minutesMax: 5,
  async run(report, signal) {
    await using lab = await Lab.open()
    const proxy = `127.0.0.1:${await freePort()}`
    const desk = await lab.start({ name: 'desk', flags: ['--no-open'], loopback: { proxy } })
    const laptop = await lab.start({ name: 'laptop', flags: ['--no-open'] })
    await says(desk, 'network', 'create', 'home', '--as', 'desk')
    await says(desk, 'policy', 'set', lab.file('policy.toml', POLICY), '--yes')
    await joinWith(laptop, await invite(desk), '--as', 'laptop')
    const server = webServer().listen(0, '127.0.0.1')
    await once(server, 'listening')
    const port = (server.address() as { port: number }).port
    await says(laptop, 'service', 'add', 'web', String(port))
    const url = `http://web.home.internal:${port}/`
    const answers = async () => (await run('curl', ['-sf', '--max-time', '2', '-x', `http://${proxy}`, url])).code === 0
    await until(answers, { what: 'the service answers', ms: AGAIN_MS_MAX })

    laptop.signal('SIGSTOP')
    await until(async () => !(await sees(desk, 'laptop')), { what: 'it is given up', ms: AGAIN_MS_MAX })
    await delay(scaled(SLEEP_MS, SLEEP_MS_LEAST), undefined, { signal })
    laptop.signal('SIGCONT')
    const startMs = performance.now()
    const connected = until(async () => (await sees(desk, 'laptop')) && (await sees(laptop, 'desk')), {
      what: 'both are connected again',
      ms: AGAIN_MS_MAX,
    }).then(() => performance.now() - startMs)
    await until(answers, { what: 'the service answers again', ms: AGAIN_MS_MAX })
    const answeredMs = performance.now() - startMs
    server.close()
    report.note(
      `after a sleep: connected again in ${Math.round(await connected)} ms, a service answers in ${Math.round(answeredMs)} ms`,
    )
  },
}

async function sees(agent: RealAgent, name: string): Promise<boolean> {
  return (await agent.client.get<{ peers: PeerView[] }>('peers')).peers.some((one) => one.name === name)
}
