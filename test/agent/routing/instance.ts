/** Instances of services, and streams between two ends, for tests of routing. */
import type { Instance } from '../../../agent/routing/services.ts'

export function instanceOf(more: Partial<Instance> = {}): Instance {
  const { peerId = 'peer' } = more
  return {
    id: `cid-${peerId}`,
    network: 'home',
    service: 'web',
    peerId,
    node: peerId,
    proto: 'tcp',
    port: 80,
    labels: {},
    weight: 1,
    state: 'healthy',
    ...more,
  }
}
