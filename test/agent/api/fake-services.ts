/** A ServiceApi that knows one service, offered by two nodes. */
import type { ServiceApi } from '../../../agent/api/service-api.ts'
import type { InstanceView, ServiceDetail } from '../../../agent/api/service-contract.ts'
import { AgentError } from '../../../agent/error.ts'

const PEER_ID = '12D3KooWHr4mLCHzdGsHY4y3rqTXo7PLQjzEaBCvqSoUiLiFq7q7'

const instance: InstanceView = {
  id: 'bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy',
  network: 'home',
  service: 'web',
  peerId: PEER_ID,
  node: 'pear',
  proto: 'http',
  port: 8080,
  labels: { tier: 'front' },
  weight: 1,
  state: 'healthy',
  zone: 'a',
  rttMs: 0.4,
  own: false,
}

export const web: ServiceDetail = {
  network: 'home',
  name: 'web',
  address: 'web.home.internal',
  proto: 'http',
  instanceCount: 2,
  healthyCount: 1,
  offer: {
    host: '127.0.0.1',
    port: 8080,
    check: 'http:/',
    proxyProtocol: false,
    declared: false,
    state: 'ill',
    why: 'refused',
  },
  instances: [instance, { ...instance, node: 'apple', state: 'ill', zone: null, rttMs: null, own: true }],
}

export function fakeServices(replaced: Partial<ServiceApi> = {}): ServiceApi {
  const found = (name: string) => {
    if (name.startsWith('web')) return web
    throw new AgentError('not-found', `nobody offers a service "${name}" here`)
  }
  const { instances: _instances, ...service } = web
  return {
    services: () => ({ services: [service] }),
    service: found,
    add: ({ name, port }) => ({ ...web, name, offer: { ...(web.offer as NonNullable<typeof web.offer>), port } }),
    drain: ({ name }) => found(name),
    remove: found,
    connections: () => ({
      connections: [
        {
          direction: 'out',
          network: 'home',
          service: 'web',
          peerId: PEER_ID,
          node: 'pear',
          carrier: 'tcp',
          path: 'direct',
          rule: null,
          seconds: 61,
          idleSeconds: 2,
          sentBytes: 1_000,
          receivedBytes: 2_000_000,
        },
      ],
    }),
    trace: async (name) => ({
      name,
      ok: false,
      steps: [
        { step: 'resolve', ms: 0.1, ok: true, text: 'web.home.internal: pear healthy' },
        { step: 'rule', ms: 0.1, ok: false, text: 'no grant gives service:connect web' },
      ],
    }),
    forward: async ({ name, port = 8080 }, emit) =>
      emit({ type: 'listening', name, host: '127.0.0.1', port, proto: 'tcp' }),
    ...replaced,
  }
}
