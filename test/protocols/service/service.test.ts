/** Offers of services: against vectors made by hand, and against whatever bytes there are. */
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { z } from 'zod'
import { decodeCbor, encodeCbor } from '../../../protocols/cbor.ts'
import {
  instanceCid,
  makeServiceBody,
  type ServiceBody,
  type ServiceOffer,
  serviceIn,
} from '../../../protocols/service/service.ts'

const vectors = JSON.parse(readFileSync('protocols/service/vectors.json', 'utf8')) as {
  publisher: string
  bodies: {
    offer: Omit<ServiceOffer, 'node'> & { node: string }
    state: ServiceBody['state']
    bytes: string
    cid: string
  }[]
  refused: { why: string; name: string; bytes: string }[]
}
const bytesOf = (hex: string) => Uint8Array.from(Buffer.from(hex, 'hex'))
const publisher = bytesOf(vectors.publisher)
const decoded = (hex: string) => decodeCbor(bytesOf(hex), z.unknown())

describe('an offer', () => {
  it.each(vectors.bodies)(
    'of $offer.service is read, made and addressed as it stands',
    ({ offer, state, bytes, cid }) => {
      const own = { ...offer, node: bytesOf(offer.node) } as ServiceOffer
      const read = serviceIn({ name: own.service, publisher, body: decoded(bytes) })
      expect(read).toEqual({ v: 1, offer: own, state })
      expect(Buffer.from(encodeCbor(makeServiceBody(own, state))).toString('hex')).toBe(bytes)
      expect(instanceCid(own).toString()).toBe(cid)
    },
  )

  it.each(vectors.refused)('is none: $why', ({ name, bytes }) => {
    expect(serviceIn({ name, publisher, body: decoded(bytes) })).toBeUndefined()
  })

  it('keeps what a later version adds, in its address, and takes a state that is not known for unknown', () => {
    const [{ offer, cid } = vectors.bodies[0] as never] = vectors.bodies
    const later = { ...offer, node: publisher, tls: true }
    const read = serviceIn({ name: 'web', publisher, body: { v: 2, offer: later, state: 'sleeping', more: 1 } })
    expect(read).toMatchObject({ state: 'unknown', offer: { tls: true } })
    expect(instanceCid((read as ServiceBody).offer).toString()).not.toBe(cid)
  })

  it('has the same address in every state, and another one for every other offer', () => {
    const arbitrary = fc.record({
      node: fc.uint8Array({ minLength: 32, maxLength: 32 }),
      service: fc.stringMatching(/^[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?$/),
      proto: fc.constantFrom('tcp' as const, 'udp' as const, 'http' as const),
      port: fc.integer({ min: 1, max: 65_535 }),
      weight: fc.integer({ min: 0, max: 1_000 }),
      labels: fc.dictionary(fc.constantFrom('a', 'zone', 'tier.x'), fc.constantFrom('x', 'Y-1', 'z_2')),
      since: fc.maxSafeNat(),
    })
    fc.assert(
      fc.property(arbitrary, arbitrary, (one, other) => {
        const body = makeServiceBody(one, 'healthy')
        const again = decodeCbor(encodeCbor(body), z.unknown())
        const read = serviceIn({ name: one.service, publisher: one.node, body: again })
        expect(read).toEqual(body)
        const cid = instanceCid((read as ServiceBody).offer).toString()
        expect(cid).toBe(instanceCid(makeServiceBody(one, 'ill').offer).toString())
        const isSame = Buffer.compare(encodeCbor(one), encodeCbor(other)) === 0
        expect(cid === instanceCid(other).toString()).toBe(isSame)
      }),
    )
  })

  it('is of any body one or none', () => {
    fc.assert(
      fc.property(fc.anything({ withNullPrototype: false }), fc.string(), (body, name) => {
        const read = serviceIn({ name, publisher, body })
        expect(read === undefined || read.offer.service === name).toBe(true)
      }),
    )
  })
})
