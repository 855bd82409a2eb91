/** Warnings that parts have of themselves: each appears when it should, says what to do, and is silent when all is well. */
import { describe, expect, it } from 'vitest'
import {
  forwardWarnings,
  pushWarnings,
  rangeWarnings,
  registryWarnings,
  shareWarnings,
  unplacedWarnings,
} from '../../../agent/node/part-warnings.ts'
import { Misses } from '../../../agent/node/warnings.ts'

const well = { isOpen: false, isSharing: false, hasStore: true, failure: undefined }

describe('warnings of parts', () => {
  it.each([
    [
      'push.unpublished',
      () => pushWarnings([{ network: 'home', paths: 2, reason: 'no grant' }]),
      /2 store paths .*"home": no grant/,
    ],
    [
      'registry.resting',
      () => registryWarnings([{ prefix: 'docker.io', resting: 'it is down' }]),
      /docker\.io .*it is down/,
    ],
    [
      'forward.failed',
      () => forwardWarnings([{ text: 'web.home=127.0.0.1:80', reason: 'taken' }]),
      /web\.home.* taken/,
    ],
    ['service.unplaced', () => unplacedWarnings(['web=127.0.0.1:80'], 2), /web=.* in 2 closed networks/],
    ['share.open', () => shareWarnings({ ...well, isOpen: true, isSharing: true }), /everybody/],
    ['share.no-store', () => shareWarnings({ ...well, isSharing: true, hasStore: false }), /there is none/],
    ['share.unsaid', () => shareWarnings({ ...well, isSharing: true, failure: 'too much' }), /too much/],
    ['names.no-range', () => rangeWarnings({ message: 'no addresses', next: 'Free some.' }), /no addresses/],
    [
      'nix.unfetched',
      () => {
        const misses = new Misses()
        misses.note('/nix/store/x', 'the peer went away')
        return misses.warnings()
      },
      /\/nix\/store\/x.*the peer went away/,
    ],
  ])('%s', (code, warnings, says) => {
    expect(warnings()).toEqual([{ code, message: expect.stringMatching(says), next: expect.stringMatching(/\w+/) }])
  })

  it('are silent when all is well', () => {
    expect([
      ...pushWarnings([]),
      ...registryWarnings([{ prefix: 'docker.io', resting: undefined }]),
      ...forwardWarnings([]),
      ...unplacedWarnings([], 0),
      ...shareWarnings({ ...well, isSharing: true }),
      ...rangeWarnings(undefined),
      ...new Misses().warnings(),
    ]).toEqual([])
  })
})
