/** Services for tests of discovery: instances on loopback, as they are set. */
import { Directory } from '../../../agent/discovery/directory.ts'
import { nameOf } from '../../../agent/routing/internal-names.ts'
import { FakeServices } from '../routing/fake-services.ts'

export function fakeDirectory(zone?: string): { services: FakeServices; directory: Directory; held: Set<string> } {
  const services = new FakeServices()
  const held = new Set<string>()
  const directory = new Directory({
    services,
    hold: async (name) => {
      held.add(name)
      return name.startsWith('taken.') ? { fault: 'used by another program' } : { address: '127.0.0.1' }
    },
    nameOf,
    zoneIn: () => zone,
  })
  return { services, directory, held }
}
