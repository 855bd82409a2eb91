/** Names of services, over several networks. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { type Instance, Services } from '../../../agent/routing/services.ts'
import { instanceOf } from './instance.ts'

function source(name: string, instances: Instance[]) {
  const listeners = new Set<() => void>()
  return {
    name,
    instances: {
      services: () => [...new Set(instances.map(({ service }) => service))],
      of: (service: string) => instances.filter((one) => one.service === service),
      onChange: (listener: () => void) => {
        listeners.add(listener)
        return () => void listeners.delete(listener)
      },
    },
    change: () => {
      for (const listener of listeners) listener()
    },
  }
}

const home = source('home', [
  instanceOf({ peerId: 'nas' }),
  instanceOf({ peerId: 'pear' }),
  instanceOf({ peerId: 'nas', service: 'db' }),
])
const work = source('work', [instanceOf({ network: 'work', peerId: 'desk' })])

describe('a name of a service', () => {
  const services = new Services()
  services.add(home)
  services.add(work)
  const found = (name: string) => services.resolve(name)?.instances.map(({ peerId }) => peerId)

  it('is good with its network, with a node, and with or without the end', () => {
    for (const name of ['web.home.internal', 'web.home', 'WEB.Home.Internal.'])
      expect(found(name)).toEqual(['nas', 'pear'])
    expect(found('web.nas.home.internal')).toEqual(['nas'])
    expect(services.resolve('web.nas.home')).toMatchObject({ network: 'home', service: 'web', node: 'nas' })
    expect(found('db')).toEqual(['nas'])
  })

  it('is none when nobody offers it there', () => {
    for (const name of ['db.work', 'web.desk.home', 'web.nowhere', 'home.internal', '', '.', 'a.b.c.d.internal'])
      expect(found(name)).toBeUndefined()
  })

  it('has to say its network where several have it', () => {
    expect(() => found('web')).toThrow(expect.objectContaining({ code: 'usage' }))
  })

  it('is of any text one, none, or a mistake', () => {
    fc.assert(
      fc.property(fc.string(), (name) => {
        if (name !== 'web') expect([true, false]).toContain(services.resolve(name) === undefined)
      }),
    )
  })
})

it('tells of changes, of networks that come, and of those that go', () => {
  const services = new Services()
  let told = 0
  services.onChange(() => {
    told++
  })
  const remove = services.add(home)
  home.change()
  expect([told, services.list().map(({ service }) => service)]).toEqual([2, ['web', 'db']])
  remove()
  home.change()
  expect([told, services.list()]).toEqual([3, []])
})
