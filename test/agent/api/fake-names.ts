/** A NamesApi with one name in use. */
import type { NamesApi } from '../../../agent/api/names-api.ts'
import { NodeNamesApi } from '../../../agent/node/api-names.ts'

const names = [{ name: 'web.home.internal', address: '127.77.3.4', ports: [80, 8080], connections: 2 }]

export const fakeNames: NamesApi = new NodeNamesApi({
  names: { list: () => ({ range: '127.77.0.0/16', names }), reverseZone: '77.127.in-addr.arpa' },
  dns: { address: { host: '127.0.0.1', port: 7453 } },
  routing: { networks: () => [{ name: 'home' }] as never },
})
