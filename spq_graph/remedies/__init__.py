"""What could be done about spikes besides keeping a site, on paper: one pure file each?"""
