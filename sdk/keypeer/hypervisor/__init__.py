"""What a host does with a VM key: encrypted disks and vTPM, saved images, live migration (deploy/hypervisors.md).

Everything here takes keys and callbacks as arguments and speaks to no service.
"""
