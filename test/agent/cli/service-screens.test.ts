/** What the commands of services print, and what they ask for. */
import { describe, expect, it } from 'vitest'
import type { ServiceApi } from '../../../agent/api/service-api.ts'
import { connectionTable } from '../../../agent/cli/forward.ts'
import { serviceScreen } from '../../../agent/cli/service.ts'
import { AgentError } from '../../../agent/error.ts'
import { serve } from '../api/fake-agent.ts'
import { fakeServices, web } from '../api/fake-services.ts'
import { run } from './capture.ts'

const pipe = { columns: undefined, style: (_style: unknown, text: string) => text }

async function ask(words: string[], replaced: Partial<ServiceApi> = {}) {
  await using agent = await serve({ routing: fakeServices(replaced) })
  return await run(words, { socket: agent.socket })
}

describe('services', () => {
  it('are offered as they are described', async () => {
    const asked: unknown[] = []
    const add: ServiceApi['add'] = (request) => {
      asked.push(request)
      return web
    }
    const words =
      '--proto http --check http:/health --label tier=front --label v:2 --weight 3 --proxy-protocol --network home'
    const made = await ask(['service', 'add', 'web', '192.0.2.1:8080', ...words.split(' ')], { add })
    expect(asked).toEqual([
      {
        name: 'web',
        host: '192.0.2.1',
        port: 8_080,
        proto: 'http',
        check: 'http:/health',
        weight: 3,
        labels: { tier: 'front', v: '2' },
        proxyProtocol: true,
        network: 'home',
      },
    ])
    expect(made.out).toBe('Offered as web.home.internal\n')
    expect(made.err).toContain('service:connect web')
    for (const wrong of [
      ['web', 'x'],
      ['web', '80', '--proto', 'quic'],
      ['web', '80', '--label', 'x'],
      ['web', '80', '--weight', '-1'],
    ])
      expect((await ask(['service', 'add', ...wrong])).status).toBe(2)
    expect((await ask(['service', 'add', 'No', '80'])).err).toContain('cannot be the name of a service')
  })

  it('are listed, shown with their instances, drained and removed', async () => {
    expect((await ask(['service', 'list'])).out).toBe(
      'NAME               KIND  HEALTHY  HERE\nweb.home.internal  http   1 of 2  127.0.0.1:8080, ill\n',
    )
    expect((await ask(['service', 'list'], { services: () => ({ services: [] }) })).out).toContain('agent service add')
    expect(serviceScreen(web, pipe).join('\n')).toBe(
      `
web.home.internal  http

Here          127.0.0.1:8080, ill: refused
Looked at by  http:/

NODE   STATE        RTT  ZONE  WEIGHT  LABELS      ID
pear   healthy  0.40 ms  a          1  tier=front  ${web.instances[0]?.id}
apple  ill         here  -          1  tier=front  ${web.instances[0]?.id}
`.trim(),
    )
    expect((await ask(['service', 'drain', 'web'])).out).toContain('Drained: web.home.internal')
    expect((await ask(['service', 'drain', 'web', '--undo'])).out).toContain('Takes streams again')
    expect((await ask(['service', 'remove', 'web'])).out).toBe('No longer offered here: web.home.internal\n')
    expect((await ask(['service', 'show', 'nope'])).status).toBe(5)
  })

  it('are traced step by step, and a trace that fails says where', async () => {
    const { out, status } = await ask(['trace', 'web.home'])
    expect(status).toBe(1)
    expect(out).toMatch(/ok +resolve .*pear healthy\nno +rule .*no grant gives service:connect web/)
  })
})

describe('a forward', () => {
  it('says where it is, for whom, and what it could not carry', async () => {
    const forward: ServiceApi['forward'] = async ({ name, host = '127.0.0.1', port = 80 }, emit) => {
      emit({ type: 'listening', name, host, port, proto: 'tcp' })
      emit({ type: 'refused', message: 'no grant' })
      throw new AgentError('cancelled', 'the agent is stopping')
    }
    const { out, err, status } = await ask(['forward', 'web', '0.0.0.0:8000'], { forward })
    expect(out).toBe('web is at 0.0.0.0:8000 (tcp) until Ctrl-C\n')
    expect(err).toMatch(/Everybody who can reach[\s\S]*no grant[\s\S]*the agent is stopping/)
    expect(status).toBe(1)
    expect((await ask(['forward', 'web', 'x'], { forward })).status).toBe(2)
  })
})

it('shows open tunnels, which way they go, and how much went through', async () => {
  const { connections } = await fakeServices().connections()
  expect(connectionTable(connections, pipe).join('\n')).toBe(
    `
    SERVICE   NODE  PATH       UP  IDLE     SENT  RECEIVED
to  web.home  pear  direct  1 min   2 s  1.0 KiB   1.9 MiB
`.slice(1, -1),
  )
  expect((await ask(['connections'], { connections: () => ({ connections: [] }) })).out).toBe('No tunnels are open.\n')
})
